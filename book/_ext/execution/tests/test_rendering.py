"""Plain Sphinx shows what the stage executed, runs nothing, and re-reads what was run again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import pytest

from execution.tests.fixture_book import FILES, PAGES, Book, cell, page, write_book

FIGURE = page(
    "Figure",
    cell(
        """import matplotlib.pyplot as plt
fig, ax = plt.subplots()
ax.plot([1, 2])
ax.set_title('a b');""",
        """---
mystnb:
  figure:
    caption: A line to {eval}`1 + 1`.
    name: fig-line
  image:
    alt: a line
---
""",
    ),
    cell("""class Row:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {'text/plain': 'row', 'application/vnd.sample+json': {'value': 3}}
Row()"""),
)


@pytest.fixture(scope="module")
def rendered(executed_once: Book, tmp_path_factory: pytest.TempPathFactory) -> Book:
    """The fixture book, rendered once."""
    root = tmp_path_factory.mktemp("rendered") / "repository"
    shutil.copytree(executed_once.root, root)
    book = Book(root)
    done = book.sphinx()
    assert done.returncode == 0, done.stdout + done.stderr
    return book


def test_values_stand_in_prose_and_captions(rendered: Book) -> None:
    text = re.sub(r"<[^>]+>", "", rendered.html("numbers"))
    assert "The total is 42, or 42.00." in text
    assert "Twice is 84." in text


def test_each_page_ends_with_one_stamp(rendered: Book) -> None:
    for name in PAGES:
        (stamp,) = re.findall(r'<div class="executed-on[^"]*">\s*<p>(.*?)</p>', rendered.html(name))
        when, how_long = (
            r"\d{4}-\d\d-\d\d \d\d:\d\d UTC",
            r"[\d.]+ s( on a busy machine)? \([\d.]+ s of CPU\)",
        )
        assert re.fullmatch(rf"Executed on {when} with Python [\d.]+, in {how_long}\.", stamp)
    assert "executed-on" not in rendered.html("index")
    assert "executed" not in (rendered.root / "out/html/searchindex.js").read_text()


def test_twins_show_their_own_outputs(rendered: Book) -> None:
    assert "<span></span>left" in rendered.html("left/twin")
    assert "<span></span>right" in rendered.html("right/twin")


def test_only_the_page_that_was_executed_again_is_read_again(rendered: Book) -> None:
    rendered.write("src/alpha.py", "VALUE = 60\n")
    assert rendered.stage().returncode == 0
    done = rendered.sphinx()
    assert done.returncode == 0
    assert "0 added, 1 changed, 0 removed" in done.stdout
    assert "The total is 62" in re.sub(r"<[^>]+>", "", rendered.html("numbers"))
    assert "0 added, 0 changed, 0 removed" in rendered.sphinx().stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("print(total)", "print(-total)", "numbers.md: not executed as it stands"),
        ("`total`", "`total + 7`", "'total + 7' was not evaluated when the page was executed"),
        (
            "`total`",
            "`total`, `` {eval}`nothing` ``, {eval}`nothing`",
            "NameError: name 'nothing' is not defined",
        ),
    ],
)
def test_what_was_not_executed_is_an_error(book: Book, old: str, new: str, message: str) -> None:
    book.edit("book/numbers.md", old, new)
    if "nothing" in new:
        assert book.stage().returncode == 0  # it might have been a sample of how to write a role
    done = book.sphinx()
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_without_a_cache_sphinx_refuses(book: Book) -> None:
    (book.cache / "pages" / "ranks.json").unlink()
    done = book.sphinx()
    assert done.returncode != 0
    assert "ranks.md: not executed as it stands" in done.stderr


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """A book with one figure, executed with pyplot shared."""
    conf = FILES["book/conf.py"] + "suppress_warnings = ['mystnb.unknown_mime_type']\n"
    files = {"book/index.md": FIGURE, "book/conf.py": conf, "locks.txt": "nbformat==5.0\n"}
    book = write_book(tmp_path_factory.mktemp("figure") / "repository", files)
    done = book.stage("--preload", "matplotlib.pyplot,matplotlib_inline.backend_inline")
    assert done.returncode == 0, done.stdout
    return book


def test_a_figure_is_one_bundle_of_svg_and_pdf(figure: Book) -> None:
    (output,) = [
        one for one in figure.outputs("index")[0] if "image/svg+xml" in one.get("data", {})
    ]
    svg = output["data"]["image/svg+xml"]
    assert "application/pdf" in output["data"]
    assert svg.startswith("<svg")
    assert not {"<!DOCTYPE", "<metadata"} & set(re.findall(r"<!?\w+", svg))
    assert not re.search(r"<path(?![^>]*\sd=)", svg)
    assert "fill: #ffffff" not in svg  # nothing is painted behind the axes


def test_a_custom_mime_type_comes_through(figure: Book) -> None:
    (output,) = figure.outputs("index")[1]
    assert output["data"]["application/vnd.sample+json"] == {"value": 3}


def test_each_format_takes_its_image(figure: Book) -> None:
    assert figure.sphinx("html").returncode == 0
    assert figure.sphinx("latex").returncode == 0
    assert list((figure.root / "out/html/_images").glob("*.svg"))
    assert list((figure.root / "out/latex").glob("*.pdf"))
    assert "A line to" in next((figure.root / "out/latex").glob("*.tex")).read_text()


def test_figures_are_the_same_bytes_again(figure: Book) -> None:
    before = figure.notebooks()
    assert figure.stage("--fresh").returncode == 0  # pyplot imported by the page itself this time
    assert figure.notebooks() == before


def test_ordinary_kernels_give_the_same_outputs(
    executed_once: Book, figure: Book, new_book: Callable[[dict[str, str]], Book]
) -> None:
    book = new_book({**FILES, "book/figure.md": FIGURE})
    done = book.stage("--kernels")
    assert done.returncode == 0, done.stdout
    assert book.executed() == PAGES | {"figure"}
    for name in PAGES:
        assert book.outputs(name) == executed_once.outputs(name), name
        assert book.record(name)["key"] == executed_once.record(name)["key"], name
    assert book.outputs("figure") == figure.outputs("index")
