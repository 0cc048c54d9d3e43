"""Pages are read as MyST-NB reads them; expressions are found where they can stand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from execution.cache import locked_versions
from execution.cells import clean_svg, judged
from execution.forking import next_that_fits
from execution.pages import DEFAULT_BUDGET, Page, PageError, has_code, read_page
from execution.tests.fixture_book import cell, page


def read(text: str | bytes) -> Page:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.md"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_page("one", path)


def test_a_cell_knows_the_line_of_its_code() -> None:
    text = page(
        "One",
        cell("a = 1"),
        cell("\nb = 2", ":tags: [x]\n"),
        cell("c = 3", "---\ntags: [y]\n---\n"),
    )
    lines = text.splitlines()
    for found, source in zip(read(text).cells, ("a = 1", "b = 2", "c = 3"), strict=True):
        assert lines[found.line - 1 + found.source.splitlines().index(source)] == source


def test_expressions_are_those_that_the_role_would_be_given() -> None:
    text = page(
        "One",
        "{eval}`a`, {eval}``b['`']``,\n{eval}`f'{c:.1f}\nx'` and `no`\n\n",
        cell("a = 1", "---\nmystnb:\n  figure:\n    caption: |\n      Made of {eval}`d`.\n---\n"),
        "```{eval} e + 1\n```\n\n```{eval:figure} f\n:name: g\n```\n",
    )
    found = [(one.text, one.cells_before) for one in read(text).expressions]
    assert found == [("a", 0), ("b['`']", 0), ("f'{c:.1f} x'", 0), ("d", 1), ("e + 1", 1), ("f", 1)]


def test_front_matter_sets_budget_and_processes() -> None:
    assert read(page("One", cell("1"))).budget == DEFAULT_BUDGET
    declared = read(page("One", cell("1"), more="execution: {budget: 42, processes: 4}\n"))
    assert (declared.budget, declared.processes) == (42, 4)


def test_nested_cells_are_no_cells() -> None:
    text = page(
        "One", cell("1"), "````{note}\n" + cell("2") + "````\n\n:::{note}\n" + cell("3") + ":::\n"
    )
    assert [one.source for one in read(text).cells] == ["1"]


def test_a_page_that_is_no_text_is_named() -> None:
    with pytest.raises(PageError, match="can't decode byte 0xff"):
        read(page("One", cell("1")).encode() + b"\xff")


@pytest.mark.parametrize("options", ["no", "{budget: x}", "{budget: 0}", "{processes: 0}"])
def test_wrong_options_are_named(options: str) -> None:
    with pytest.raises(PageError) as raised:
        read(page("One", cell("1"), more=f"execution: {options}\n"))
    assert raised.value.message.startswith("execution ")


@pytest.mark.parametrize(
    "text", ["# Title\n", "---\nfile_format: mystnb\n---\n# No cell\n", "```{code-cell}\n1\n```\n"]
)
def test_pages_without_code_are_seen_without_parsing(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.md").write_text(text)
    assert not has_code(tmp_path / "one.md")


def test_pages_with_processes_take_as_many_places() -> None:
    pages = [
        read(page("One", cell("1"), more=f"execution: {{processes: {n}}}\n")) for n in (4, 2, 1)
    ]
    assert next_that_fits(pages, [], 2) is pages[0]
    assert next_that_fits(pages[1:], [], 1) is pages[1]
    assert next_that_fits([], [], 2) is None


def test_locks_are_read_as_constraints() -> None:
    marked = "ruamel.yaml[jinja2] == 0.18 ; python_version > '3'"
    text = f"# torch==1\nTorch==2.13.0\n{marked}\n-r other.txt\n"
    assert locked_versions(text) == {"torch": "2.13.0", "ruamel-yaml": "0.18"}


def test_svg_is_cleaned() -> None:
    prologue = '<?xml version="1.0"?>\n<!DOCTYPE svg>\n'
    metadata = "\n <metadata>\n  <x/>\n </metadata>"
    svg = f'{prologue}<svg>{metadata}\n <path id="s"/><path d="M1 1"/></svg>'
    assert clean_svg(svg) == '<svg>\n <path d="M0 0" id="s"/><path d="M1 1"/></svg>'


def test_neighbouring_text_is_one_output() -> None:
    text = [{"output_type": "stream", "name": "stdout", "text": letter} for letter in "ab"]
    (first,) = read(page("One", cell("1"))).cells
    shown = {"output_type": "display_data", "data": {}}
    found = judged(first, [*text, shown, text[0]], None)
    assert [output.get("text") for output in found] == ["ab", None, "a"]
