"""Traps for stale numbers: changing what a page came from runs that page again, and no other."""

from __future__ import annotations

import json
import os
import py_compile
import random
from collections.abc import Callable
from typing import Any

import pytest

from execution.cache import Cache
from execution.tests.fixture_book import FILES, PAGES, TWIN, Book, cell, page


def test_first_run_executes_every_page_with_code(executed_once: Book) -> None:
    assert executed_once.executed() == PAGES
    assert executed_once.summary()["cells"] == 3 + 4 + 1 + 1 + 1


def test_nothing_changed_nothing_runs(book: Book) -> None:
    before = book.notebooks()
    done = book.stage()
    assert done.returncode == 0
    assert book.executed() == set()
    assert book.notebooks() == before


def test_decision_imports_nothing_heavy(book: Book) -> None:
    done = book.stage(PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "execution.stage" in imported
    heavy = {
        "torch",
        "transformers",
        "nbclient",
        "numpy",
        "matplotlib",
        "IPython",
        "myst_nb",
        "nbformat",
        "jupyter_cache",
        "sqlalchemy",
        "docutils",
    }
    assert not {name for name in imported if name.split(".")[0] in heavy}


@pytest.mark.parametrize(
    ("file", "user"),
    [
        ("src/alpha.py", "numbers"),  # a module the page imports
        ("src/epsilon.py", "numbers"),  # a module that this one imports
        ("src/epsilon.txt", "numbers"),  # a file that the imported one opens
        ("data/numbers.txt", "numbers"),  # a file the page opens
        ("data/forked.txt", "ranks"),  # a file that only a forked rank opens
        ("src/beta.py", "ranks"),  # a module that only a forked rank imports
        ("src/zeta.py", "ranks"),  # a module that this one imports
        ("data/python.txt", "ranks"),  # a file that another Python program opens
        ("src/gamma.py", "ranks"),  # a module that another Python program imports
        ("data/server.txt", "ranks"),  # a file that a rank of a forkserver opens
        ("data/shell.txt", "ranks"),  # a file named on another program's command line
    ],
)
def test_an_edited_or_deleted_file_runs_its_page_alone(book: Book, file: str, user: str) -> None:
    original = (book.root / file).read_text()
    book.write(file, original + "# edited\n")
    assert book.stale() == {user: [f"{file} changed"]}
    (book.root / file).unlink()
    assert book.stale() == {user: [f"{file} is gone"]}
    book.write(file, original)
    assert book.stale() == {}


def test_a_changed_module_changes_the_numbers(book: Book) -> None:
    book.write("src/alpha.py", "VALUE = 50\n")
    assert book.stage().returncode == 0
    assert book.executed() == {"numbers"}
    assert book.outputs("numbers")[0][0]["text"] == "52\n"


def test_a_module_edited_twice_within_a_second_is_not_taken_from_bytecode(book: Book) -> None:
    # The same size, the same second: Python itself would run the former bytecode.
    module = book.root / "src/alpha.py"
    moment = os.stat(module).st_mtime
    py_compile.compile(str(module))
    for value in ("51", "52"):
        book.write("src/alpha.py", f"VALUE = {value}\n")
        os.utime(module, (moment, moment))
        assert book.stage().returncode == 0
        assert book.outputs("numbers")[0][0]["text"] == f"{int(value) + 2}\n"


def test_a_new_name_in_a_listed_folder_runs_the_page(book: Book) -> None:
    book.write("data/many/c.txt", "")
    assert book.stale() == {"listing": ["data/many/ changed"]}


def test_a_file_that_was_looked_for_and_appears_runs_the_page(book: Book) -> None:
    book.write("data/wanted.txt", "")
    assert book.stale() == {"numbers": ["data/wanted.txt appeared"]}


def test_what_no_page_used_runs_nothing(book: Book) -> None:
    book.write("data/unused.txt", "2\n")
    book.write("src/delta.py", "VALUE = 2\n")
    book.write("src/omega.py", "")
    book.write("book/notes.md", "# No code\n")
    assert book.stale() == {}


def test_changed_prose_runs_nothing(book: Book) -> None:
    book.edit("book/numbers.md", "The total is", "In all it is")
    assert book.stale() == {}
    assert book.stale() == {}  # now from the record that was brought up to date


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("print(total)", "print(-total)", "cell 1 changed"),
        ("{eval}`total`,", "{eval}`total + 1`,", "expressions changed"),  # in prose
        ("{eval}`total * 2`", "{eval}`total * 3`", "expressions changed"),  # in a caption
        ("figure:", "figure:\n    name: twice", "cell 3 changed"),
        ("not there", "absent", "cell 2 changed"),
    ],
)
def test_changed_code_or_expression_runs_the_page(
    book: Book, old: str, new: str, reason: str
) -> None:
    book.edit("book/numbers.md", old, new)
    assert reason in book.stale()["numbers"]
    assert set(book.stale()) == {"numbers"}


def test_expressions_are_evaluated_at_their_place_or_at_the_end(book: Book) -> None:
    glue = {
        output["metadata"]["scrapbook"]["name"]: output["data"][
            "application/papermill.record/text/plain"
        ]
        for output in book.outputs("numbers")[0]
        if "scrapbook" in output.get("metadata", {})
    }
    assert glue == {"total": "42", "f'{total:.2f}'": "'42.00'", "total * 2": "84"}


def test_two_pages_with_the_same_cells_keep_their_own_outputs(book: Book) -> None:
    assert book.outputs("left/twin")[0][0]["text"] == "left\n"
    assert book.outputs("right/twin")[0][0]["text"] == "right\n"
    book.write("book/left/twin.md", TWIN.replace(".name)", ".name, 2)"))
    assert set(book.stale()) == {"left/twin"}


def test_a_locked_version_runs_everything_a_comment_nothing(book: Book) -> None:
    book.edit("locks.txt", "# locked", "# still locked")
    assert book.stale() == {}
    book.edit("locks.txt", "5.0", "5.1")
    assert book.stale() == {name: ["nbformat in the locks was 5.0, now 5.1"] for name in PAGES}


def test_an_installed_version_counts_too(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = book.root / "site"
    (folder / "nbformat-4.9.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    assert set(book.stale()) == PAGES


def test_settings_that_move_digits_count(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert book.stale() == {name: ["ATEN_CPU_CAPABILITY was unset, now avx2"] for name in PAGES}


def test_loaded_code_counts(new_book: Callable[[dict[str, str]], Book]) -> None:
    book = new_book(
        {
            "book/one.md": page("One", cell("", ":load: ../code.py\n")),
            "code.py": "print(1)\n",
            "locks.txt": "",
        }
    )
    assert book.stage().returncode == 0
    book.write("code.py", "print(2)\n")
    assert set(book.stale()) == {"one"}


def test_a_file_that_changes_while_the_page_runs_is_not_trusted(
    new_book: Callable[[dict[str, str]], Book],
) -> None:
    source = (
        "first = open('../data.txt').read()\nopen('../data.txt', 'w').write('later')\nprint(first)"
    )
    book = new_book(
        {"book/one.md": page("One", cell(source)), "data.txt": "sooner", "locks.txt": ""}
    )
    assert book.stage().returncode == 0
    assert book.stale() == {"one": ["data.txt changed while the page ran"]}


def test_a_file_that_goes_while_the_page_runs_is_not_trusted(
    new_book: Callable[[dict[str, str]], Book],
) -> None:
    source = "import os\nprint(open('../data.txt').read())\nos.unlink('../data.txt')"
    book = new_book({"book/one.md": page("One", cell(source)), "data.txt": "x", "locks.txt": ""})
    assert book.stage().returncode == 0
    assert book.stale() == {"one": ["data.txt changed while the page ran"]}


def test_what_a_page_writes_is_no_source(new_book: Callable[[dict[str, str]], Book]) -> None:
    source = "open('../made.txt', 'w').write('x')"
    book = new_book({"book/one.md": page("One", cell(source)), "locks.txt": ""})
    assert book.stage().returncode == 0
    book.write("made.txt", "y")
    assert book.stale() == {}


@pytest.mark.parametrize("keep", [0, 100])
@pytest.mark.parametrize("what", ["record", "notebook"])
def test_a_truncated_cache_is_no_cache(book: Book, what: str, keep: int) -> None:
    record = book.cache / "pages" / "numbers.json"
    path = record if what == "record" else book.notebook_path("numbers")
    path.write_bytes(path.read_bytes()[:keep])
    assert set(book.stale()) == {"numbers"}


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 1000])
def test_a_damaged_index_is_made_again_without_executing(book: Book, content: bytes | None) -> None:
    index = book.cache / "global.db"
    index.unlink() if content is None else index.write_bytes(content)
    assert book.stage().returncode == 0
    assert book.executed() == set()
    assert Cache(book.cache).indexed_hashkeys() == {book.record(name)["hashkey"] for name in PAGES}


def test_a_damaged_cache_is_repaired_by_the_next_run(book: Book) -> None:
    before = book.notebooks()
    (book.cache / "pages" / "listing.json").write_text("{")
    book.notebook_path("ranks").unlink()
    assert book.stage().returncode == 0
    assert book.notebooks() == before


@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_repaired_by_the_next_run(book: Book, seed: int) -> None:
    before, chance = book.notebooks(), random.Random(seed)
    files = [path for path in sorted(book.cache.rglob("*")) if path.is_file()]
    for path in chance.sample(files, 5):
        content = bytearray(path.read_bytes())
        place = chance.randrange(max(len(content), 1))
        if chance.random() < 0.5:
            del content[place:]  # torn off
        elif content:
            content[place] ^= 1 << chance.randrange(8)  # one bit
        path.write_bytes(content)
    assert book.stage().returncode == 0
    assert book.notebooks() == before
    assert Cache(book.cache).indexed_hashkeys() == {book.record(name)["hashkey"] for name in PAGES}
    assert book.stale() == {}


def test_a_wrong_but_readable_record_is_no_record(book: Book) -> None:
    path = book.cache / "pages" / "numbers.json"
    spoilt: list[Any] = [[], {}, {**json.loads(path.read_text()), "format": 0}, {"format": 1}]
    for spoiled in spoilt:
        path.write_text(json.dumps(spoiled))
        assert set(book.stale()) == {"numbers"}


def test_only_the_named_pages_run(book: Book) -> None:
    book.write("src/alpha.py", "VALUE = 50\n")
    book.write("data/many/c.txt", "")
    assert book.stage("listing").returncode == 0
    assert book.executed() == {"listing"}
    assert book.stage("book/index.md", "book/numbers.md").returncode == 0
    assert book.executed() == {"numbers"}
    assert book.stage("nowhere").returncode == 1


def test_a_page_that_fails_leaves_no_former_result(book: Book) -> None:
    book.write("src/alpha.py", "raise ValueError('broken')\n")
    done = book.stage()
    assert done.returncode == 1
    assert done.stdout.rstrip().endswith("book/numbers.md:13: cell 1, line 3: ValueError: broken")
    rendered = book.sphinx()
    assert rendered.returncode != 0
    assert "numbers.md: not executed as it stands" in rendered.stdout + rendered.stderr


def test_a_removed_page_leaves_nothing_behind(book: Book) -> None:
    notebook = book.notebook_path("listing")
    (book.root / "book" / "listing.md").unlink()
    book.write("src/alpha.py", "VALUE = 50\n")
    assert book.stage().returncode == 0
    assert not notebook.exists()
    assert book.summary()["pages"] == len(PAGES) - 1


def test_why_names_what_changed_and_runs_nothing(book: Book) -> None:
    book.write("src/alpha.py", "VALUE = 50\n")
    told = book.stage("--why", "numbers").stdout
    assert "never executed" in told
    assert "it would run now because:\n  src/alpha.py changed" in told
    assert "data/numbers.txt" in told
    assert "nothing has changed" in book.stage("--why", "book/ranks.md").stdout
    assert set(book.stale()) == {"numbers"}


def test_fresh_executes_all(book: Book) -> None:
    assert book.stage("--fresh", "listing").returncode == 0
    assert book.executed() == {"listing"}
    assert "asked for: --fresh" in book.stage("--why", "listing").stdout


def test_every_source_of_the_fixture_is_used_or_known_as_unused(executed_once: Book) -> None:
    used = {file for name in PAGES for file in executed_once.record(name)["key"]["files"]}
    sources = {name for name in FILES if name.startswith(("src/", "data/"))}
    unused = {"src/delta.py", "data/unused.txt", "data/many/a.txt", "data/many/b.txt"}
    assert used == (sources - unused) | {"data/wanted.txt", "data/many/"}
