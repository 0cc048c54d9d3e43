"""Whatever a reader must not see stops the build, with page, line, cell and line of the cell."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from execution.forking import outcome, read_notes
from execution.pages import PageError
from execution.tests.fixture_book import Book, cell, page, write_book

PIECE = cell("x = 1")  # cell 1 of every page
SHORT = "execution: {budget: 0.3}\n"
# What a page starts and does not wait for; in a session of its own it escapes its page's group.
ESCAPE = "import subprocess\nsubprocess.Popen(['sleep', '{}'], start_new_session=True);"
SLEEPERS = (
    "71001",
    "71002",
    "71003",
    "71004",
)  # seconds that name the processes pages leave behind


def bad(source: str, *, options: str = "", more: str = "") -> str:
    """A page whose second cell is the bad one."""
    return page("Bad", PIECE, cell(source, options), more=more)


BAD_PAGES = {
    "raises": (
        bad("y = 2\ndef f():\n    raise ValueError('bad')\nf()"),
        "cell 2, line 3: ValueError: bad",
    ),
    "raises_in_library": (
        bad("y = 2\nimport json\njson.loads('{')"),
        "cell 2, line 3: JSONDecodeError: ",
    ),
    "raises_after_options": (
        bad("y = 2\n1 / 0", options="---\ntags: [a]\n---\n\n"),
        "cell 2, line 2: ZeroDivisionError: division by zero",
    ),
    "syntax": (bad("y = 2\ny = = 3"), "cell 2, line 2: SyntaxError: invalid syntax"),
    "leaves": (bad("import sys\nsys.exit(3)"), "cell 2, line 2: SystemExit: 3"),
    "leaves_at_once": (bad("import os\nos._exit(3)"), "cell 2: the process ended with exit code 3"),
    "crashes": (
        bad("import ctypes\nctypes.string_at(0)"),
        "cell 2, line 2: the process was ended by SIGSEGV",
    ),
    "crashes_and_leaves": (
        bad(f"{ESCAPE.format(SLEEPERS[0])}\nimport ctypes; ctypes.string_at(0)"),
        "cell 2, line 3: the process was ended by SIGSEGV",
    ),
    "asks": (bad("input('x')"), "cell 2, line 1: EOFError: EOF when reading a line"),
    "warns": (
        bad("import warnings\nwarnings.warn('careful')"),
        "cell 2, line 2: wrote on standard error: <ipython-input-2",
    ),
    "prints_on_stderr": (
        bad("import sys\nprint('oops', file=sys.stderr)"),
        "cell 2, line 2: wrote on standard error: oops",
    ),
    "stderr_from_c": (
        bad("import ctypes\nctypes.CDLL(None).perror(b'from C');"),
        "cell 2: wrote on standard error: from C: ",
    ),
    "stderr_of_a_rank": (
        bad("import os\nif os.fork() == 0:\n    os.write(2, b'rank')\n    os._exit(0)\nos.wait();"),
        "cell 2: wrote on standard error: rank",
    ),
    "hangs": (
        bad("import time\nfor _ in range(3):\n    time.sleep(100)", more=SHORT),
        "cell 2, line 3: hangs: stopped after ",
    ),
    "hangs_in_c": (
        bad("import ctypes\nctypes.CDLL(None).pause()", more=SHORT),
        "cell 2, line 2: hangs: stopped after ",
    ),
    "hangs_with_escaped_process": (
        bad(
            f"{ESCAPE.format(SLEEPERS[1])}\nsubprocess.run(['sleep', '{SLEEPERS[2]}'])",
            more=SHORT,
        ),
        "cell 2, line 3: hangs: stopped after ",
    ),
    "computes_too_long_in_a_rank": (
        bad("import os\nif os.fork() == 0:\n    while True: pass\nos.wait()", more=SHORT),
        "cell 2, line 4: stopped after 0.",
    ),
    "asks_for_too_much": (
        bad("1", more="execution: {budget: 400}\n"),
        "execution budget 400 is not in (0, 60] seconds",
    ),
    "no_figure": (
        bad("1 + 1", options="---\nmystnb:\n  figure:\n    caption: x\n---\n"),
        "cell 2: a figure cell without an image",
    ),
    "figure_as_text": (
        bad("class Figure:\n    def __repr__(self): return '<Figure size 3>'\nFigure()"),
        "cell 2: a figure cell without an image",
    ),
    "two_values": (
        page("Bad", PIECE, "Here {eval}`x`.\n\n", cell("x = 5"), "There {eval}`x`.\n"),
        "cell 2: the expression 'x' has two values on this page (again in line 17)",
    ),
    "printing_expression": (
        page("Bad", PIECE, "Here {eval}`print(x)`.\n"),
        "cell 1: the expression 'print(x)' prints",
    ),
}
GOOD_PAGES = {
    "skips": page(
        "Good", PIECE, cell("1 / 0", ":tags: [skip-execution]\n"), cell(""), cell("x + 1")
    ),
    "may_raise": page("Good", PIECE, cell("1 / 0", ":tags: [raises-exception]\n"), cell("x + 1")),
    "leaves_a_process": page("Good", cell(ESCAPE.format(SLEEPERS[3]))),
    "updates": page(
        "Good",
        cell(
            "from IPython.display import clear_output\nprint('x')\nshown = display('old', display_id=True)"
        ),
        cell("print('gone')\nclear_output()\nprint('y', end='')\nshown.update('new')"),
    ),
    "sample_of_a_role": page("Good", PIECE, "Write ``{eval}`unknown` ``.\n"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Book, subprocess.CompletedProcess[str]]:
    """One run over all the bad pages and some good ones."""
    texts = {name: text for name, (text, _) in BAD_PAGES.items()} | GOOD_PAGES
    files = {f"book/{name}.md": text for name, text in texts.items()} | {
        "locks.txt": "nbformat==5.0\n"
    }
    book = write_book(tmp_path_factory.mktemp("failures") / "repository", files)
    return book, book.stage("--cpu-slack", "2")


def line_at(text: str, expected: str) -> str:
    """The line of the page that a failure is expected to name."""
    place = re.match(r"cell (\d+)(?:, line (\d+))?: ", expected)
    if place is None:
        return "---"
    body = text.split("{code-cell} ipython3\n")[int(place[1])].split("\n```")[0]
    code = re.sub(r"\A---\n.*?---\n\n?", "", body, flags=re.DOTALL)
    return code.splitlines()[int(place[2] or 1) - 1]


@pytest.mark.parametrize("name", BAD_PAGES)
def test_failure_is_named_with_its_place(
    run: tuple[Book, subprocess.CompletedProcess[str]], name: str
) -> None:
    _, done = run
    last_lines = done.stdout[done.stdout.index("pages executed") :].splitlines()
    (line,) = [line for line in last_lines if line.startswith(f"book/{name}.md:")]
    number, message = line.removeprefix(f"book/{name}.md:").split(": ", 1)
    text, expected = BAD_PAGES[name]
    assert message.startswith(expected)
    assert text.splitlines()[int(number) - 1] == line_at(text, expected)
    if waited := re.search(r"hangs: stopped after ([\d.]+) s of waiting", message):
        assert 0.3 <= float(waited[1]) < 3  # its budget, rounded, and the time between two looks


def test_exit_code_and_count_say_so(run: tuple[Book, subprocess.CompletedProcess[str]]) -> None:
    book, done = run
    assert done.returncode == 1
    assert done.stderr == ""
    assert len(book.summary()["failed"]) == len(BAD_PAGES)
    assert book.executed() == set(GOOD_PAGES)


def test_traceback_is_printed(run: tuple[Book, subprocess.CompletedProcess[str]]) -> None:
    _, done = run
    assert "----> 3     raise ValueError('bad')" in done.stdout


def test_expected_exception_is_an_output(
    run: tuple[Book, subprocess.CompletedProcess[str]],
) -> None:
    book, _ = run
    (output,) = book.outputs("may_raise")[1]
    assert (output["output_type"], output["ename"]) == ("error", "ZeroDivisionError")
    assert book.outputs("may_raise")[2][0]["data"]["text/plain"] == "2"


def test_displays_are_updated_and_cleared(
    run: tuple[Book, subprocess.CompletedProcess[str]],
) -> None:
    (text, shown), (last,) = run[0].outputs("updates")
    assert text["text"] == "x\n"
    assert shown["data"]["text/plain"] == "'new'"
    assert last["text"] == "y"


def test_a_page_over_its_budget_fails_even_if_it_ended_in_time() -> None:
    done = b'done\t{"hashkey": "", "notebook": ""}\n'
    few = SimpleNamespace(page=SimpleNamespace(budget=2.0), stopped="")
    found = outcome(few, 0, 6.1, 3.0, read_notes(done), b"")  # type: ignore[arg-type]
    assert isinstance(found, PageError)
    assert found.message == "took 6.1 s of CPU; its budget is 2 s"
    within = outcome(few, 0, 5.9, 3.0, read_notes(done), b"")  # type: ignore[arg-type]
    assert not isinstance(within, PageError)


@pytest.mark.parametrize("seconds", SLEEPERS)
def test_no_process_outlives_its_page(
    run: tuple[Book, subprocess.CompletedProcess[str]], seconds: str
) -> None:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert f"sleep\0{seconds}\0".encode() not in lines


def test_skipped_and_empty_cells_keep_the_count(
    run: tuple[Book, subprocess.CompletedProcess[str]],
) -> None:
    book, _ = run
    assert [len(found) for found in book.outputs("skips")] == [0, 0, 0, 1]
    assert book.outputs("skips")[3][0]["execution_count"] == 4


def test_modules_of_the_repository_cannot_be_preloaded(
    new_book: Callable[[dict[str, str]], Book],
) -> None:
    book = new_book({"book/one.md": page("One", PIECE), "shared.py": "", "locks.txt": ""})
    done = book.stage("--preload", "shared")
    assert done.returncode == 1
    assert "shared.py" in done.stderr
