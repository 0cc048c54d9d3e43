"""Killed, doubled, on a full disk: the next run gives what a clean one does; nothing runs on."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from execution.tests.fixture_book import FILES, PAGES, Book, cell, page, write_book


def processes_with(text: str) -> list[int]:
    """Processes whose environment or command line holds a text, without this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            holds = (
                text.encode()
                in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            )
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if holds and not zombie and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("attempt", range(6))
def test_killed_at_a_random_moment(executed_once: Book, tmp_path: Path, attempt: int) -> None:
    shutil.copytree(executed_once.root, tmp_path / "repository")
    book = Book(tmp_path / "repository")
    killed = book.start("--fresh")
    time.sleep(random.Random(attempt).uniform(0.1, 1.3))
    killed.kill()
    killed.wait()
    killed.stdout.close()  # type: ignore[union-attr]
    assert book.stage().returncode == 0
    assert book.notebooks() == executed_once.notebooks()
    assert set(book.notebooks()) == PAGES
    assert book.stale() == {}


def test_nothing_outlives_a_killed_stage(new_book: Callable[[dict[str, str]], Book]) -> None:
    mark = f"7{os.getpid()}"
    source = (
        f"import subprocess, os\nsubprocess.Popen(['sleep', '{mark}'], start_new_session=True)\n"
        f"if os.fork() == 0:\n    os.setsid()\n    os.execvp('sleep', ['sleep', '{mark}'])\n"
        f"subprocess.run(['sleep', '{mark}'])"
    )
    book = new_book({"book/one.md": page("One", cell(source)), "locks.txt": ""})
    stage = book.start()
    try:
        assert wait_until(lambda: len(processes_with(f"sleep\0{mark}")) == 3, 20)
    finally:
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
        stage.stdout.close()  # type: ignore[union-attr]
    assert wait_until(
        lambda: not processes_with(f"sleep\0{mark}") and not processes_with(str(book.root)), 5
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_stage_leaves_in_order(
    new_book: Callable[[dict[str, str]], Book], number: signal.Signals, code: int
) -> None:
    mark = f"8{os.getpid()}"
    source = f"import subprocess\nsubprocess.run(['sleep', '{mark}'])"
    book = new_book({"book/one.md": page("One", cell(source)), "locks.txt": ""})
    stage = book.start()
    assert wait_until(lambda: bool(processes_with(f"sleep\0{mark}")), 20)
    stage.send_signal(number)
    text, _ = stage.communicate(timeout=10)
    assert stage.returncode == code
    assert "Traceback" not in text
    assert not processes_with(f"sleep\0{mark}")


def test_two_stages_at_once(executed_once: Book, tmp_path: Path) -> None:
    book = write_book(tmp_path / "repository", FILES)
    both = [book.start(), book.start()]
    texts = [stage.communicate(timeout=60)[0] for stage in both]
    assert [stage.returncode for stage in both] == [0, 0]
    assert sum("waiting for another build" in text for text in texts) == 1
    assert sorted("5 pages executed" in text for text in texts) == [
        False,
        True,
    ]  # the other found all done
    assert book.notebooks() == executed_once.notebooks()


def test_full_disk(new_book: Callable[[dict[str, str]], Book]) -> None:
    # A limit on file size stands for the disk: writes fail part way.
    files = {
        "book/one.md": page("One", cell("print('x' * 300_000)")),
        "book/two.md": page("Two", cell("print(2)")),
    }
    book = new_book({**files, "locks.txt": ""})

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    done = subprocess.run(
        book.command("--jobs", "1"),
        cwd=book.root,
        env=book.environment(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "book/one.md:" in done.stdout
    assert book.stage().returncode == 0
    assert book.executed() >= {"one"}
    assert book.outputs("one")[0][0]["text"] == "x" * 300_000 + "\n"
    assert book.stale() == {}


def test_same_bytes_one_or_four_pages_at_a_time(executed_once: Book, book: Book) -> None:
    assert book.stage("--fresh", "--jobs", "1").returncode == 0
    assert book.notebooks() == executed_once.notebooks()
    assert book.stage("--fresh", "--jobs", "4").returncode == 0
    assert book.notebooks() == executed_once.notebooks()


def test_a_page_has_one_thread_and_may_fork_ranks(
    new_book: Callable[[dict[str, str]], Book],
) -> None:
    source = (
        "import os, multiprocessing\nthreads = len(os.listdir('/proc/self/task'))\n"
        "pool = multiprocessing.get_context('fork').Pool(3)\n"
        "squares = pool.map(abs, range(4))\npool.terminate()\n"
        "print(threads, squares)"
    )
    book = new_book(
        {
            "book/one.md": page("One", cell(source), more="execution: {processes: 3}\n"),
            "locks.txt": "",
        }
    )
    done = book.stage()
    assert done.returncode == 0, done.stdout
    assert book.outputs("one")[0][0]["text"] == "1 [0, 1, 2, 3]\n"


def test_text_of_python_c_and_processes_stays_in_order(
    new_book: Callable[[dict[str, str]], Book],
) -> None:
    source = (
        "import ctypes, os, subprocess\nfrom IPython.display import HTML, display\nprint('one')\n"
        "subprocess.run(['echo', 'two'])\nos.write(1, b'three\\n')\ndisplay(HTML('four'))\n"
        "ctypes.CDLL(None).puts(b'five')\nctypes.CDLL(None).fflush(None)\nprint('six', end='');"
    )
    book = new_book({"book/one.md": page("One", cell(source)), "locks.txt": ""})
    assert book.stage().returncode == 0
    first, shown, last = book.outputs("one")[0]
    assert first["text"] == "one\ntwo\nthree\n"
    assert shown["data"]["text/html"] == "four"
    assert last["text"] == "five\nsix"


def test_environment_is_that_of_every_run(new_book: Callable[[dict[str, str]], Book]) -> None:
    names = "OMP_NUM_THREADS HF_HUB_OFFLINE TOKENIZERS_PARALLELISM PYTHONHASHSEED TZ COLUMNS"
    source = f"import os\nprint(*[os.environ.get(name) for name in '{names}'.split()])"
    book = new_book({"book/one.md": page("One", cell(source)), "locks.txt": ""})
    assert book.stage(COLUMNS="200", TZ="Asia/Tokyo").returncode == 0
    assert book.outputs("one")[0][0]["text"] == "1 1 false 0 UTC None\n"


def test_a_command_without_arguments_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "execution"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--cache" in done.stderr
