"""Killed, doubled, on a full disk: the next run gives what a clean one does; nothing runs on."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from execution import processes
from execution.cache import Cache
from execution.forking import look_after
from execution.reports import busy
from execution.sphinx_hook import stamp
from execution.stage import Options
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


@pytest.mark.parametrize("attempt", range(20))
def test_killed_at_a_random_moment(executed_once: Book, tmp_path: Path, attempt: int) -> None:
    shutil.copytree(executed_once.root, tmp_path / "repository")
    book = Book(tmp_path / "repository")
    killed = book.start("--fresh")
    time.sleep(random.Random(attempt).uniform(0, executed_once.summary()["stage_seconds"] + 0.3))
    victims = [killed.pid, *(processes_with(str(book.root)) if attempt % 2 else [])]
    for pid in victims:  # every second time all that belongs to it, guardian and pages included
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
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
    mark = f"8{number:d}{os.getpid()}"
    source = f"import subprocess\nsubprocess.run(['sleep', '{mark}'])"
    book = new_book({"book/one.md": page("One", cell(source)), "locks.txt": ""})
    before = signal.signal(number, signal.SIG_DFL)  # a shell's background jobs ignore SIGINT
    stage = book.start()
    signal.signal(number, before)
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


def test_sphinx_keeps_stages_out_and_other_readers_in(book: Book) -> None:
    reading = Cache(book.cache).lock(shared=True)
    os.close(Cache(book.cache).lock(shared=True))
    stage = book.start()
    assert stage.stdout is not None
    assert stage.stdout.readline() == "execution: waiting for another build\n"
    assert stage.poll() is None
    os.close(reading)
    assert "0 pages executed, 5 reused" in stage.communicate(timeout=60)[0]


def in_namespace(book: Book, options: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of `sh` in new namespaces; where they are refused, say so and leave the test."""
    if subprocess.run(["unshare", options, "true"], capture_output=True).returncode:
        warnings.warn(f"NOT TESTED: this system refuses `unshare {options}`", stacklevel=2)
        pytest.skip("no namespaces")
    command = ["unshare", options, "sh", "-ec", script]
    return subprocess.run(
        command, cwd=book.root, env=book.environment(), capture_output=True, text=True
    )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kilobytes", [0, 8, 20, 40, 60])
def test_full_disk_at_any_write(
    book: Book, executed_once: Book, kilobytes: int, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    stage = shlex.join(book.command("--fresh"))
    small = f"mount -t tmpfs -o size={max(kilobytes, 4)}k none cache"
    fill = "" if kilobytes else "; head -c 8k /dev/zero > cache/full 2> /dev/null || true"
    done = in_namespace(book, "-rm", f"{small}{fill}; {stage} && exit 9; cp -r cache {left}")
    assert done.returncode == 0, done.stdout + done.stderr  # 9: it ended as if all were well
    assert re.search("No space left on device|disk is full", done.stdout)
    assert "Traceback" not in done.stderr
    shutil.rmtree(book.cache)
    shutil.copytree(left, book.cache)
    (book.cache / "full").unlink(missing_ok=True)
    assert book.stage().returncode == 0
    assert book.notebooks() == executed_once.notebooks()
    assert book.stale() == {}


@pytest.mark.filterwarnings("default")
def test_nothing_is_asked_of_a_network(book: Book, executed_once: Book) -> None:
    stage = shlex.join(book.command("--fresh"))
    sphinx = f"{sys.executable} -m sphinx -W -b html book out"
    done = in_namespace(book, "-rn", f"! cat /proc/net/route | grep -q 0003; {stage}; {sphinx}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert book.executed() == PAGES
    assert book.notebooks() == executed_once.notebooks()


def test_starved_pages_are_no_hang_and_the_busy_machine_is_named(
    new_book: Callable[[dict[str, str]], Book],
) -> None:
    burn = cell("import time\nwhile time.process_time() < 1.5: pass")
    more = "execution: {budget: 1.6}\n"
    files = {f"book/{name}.md": page("Burn", burn, more=more) for name in ("a", "b", "c", "d")}
    book = new_book({**files, "locks.txt": ""})
    done = subprocess.run(
        book.command("--jobs", "4"),
        cwd=book.root,
        env=book.environment(),
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "a busy machine; these pages stood in line: a, b, c, d" in done.stdout
    assert all(one["wall_seconds"] > 3 for one in book.summary()["per_page"].values())
    record = Cache(book.cache).record("a")
    assert record is not None
    assert re.search(r"in \d+\.\d s on a busy machine \(\d\.\d s of CPU\)\.$", stamp(record))


@pytest.mark.parametrize(("state", "waits"), [("S", True), ("T", True), ("R", False), ("D", False)])
def test_a_page_waits_only_while_nothing_of_it_could_run(
    monkeypatch: pytest.MonkeyPatch, state: str, waits: bool
) -> None:
    family = {1: ["S", *"0" * 20], 2: [state, *"0" * 20]}  # a page and its rank, without progress
    monkeypatch.setattr(processes, "tree", lambda pid: family)
    long_budget = SimpleNamespace(budget=100.0)
    child = SimpleNamespace(
        page=long_budget, pid=1, cpu=0.0, waited=0.0, looked=time.monotonic() - 5, stopped=""
    )
    look_after(child, Options())  # type: ignore[arg-type]
    assert (child.waited >= 5) == waits


def test_only_standing_in_line_makes_a_machine_busy() -> None:
    assert not busy({"wall": 9.0, "cpu": 8.0, "waited": 0.0})
    assert not busy({"wall": 9.0, "cpu": 0.5, "waited": 8.0})  # it slept
    assert not busy({"wall": 9.0, "cpu": 16.0, "waited": 0.0})  # two ranks
    assert busy({"wall": 9.0, "cpu": 3.0, "waited": 1.0})


def test_progress_is_one_line_on_a_terminal(book: Book) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    stage = book.start("--fresh", out=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert stage.wait() == 0
    states = re.findall(r"\r\x1b\[K(\d) done, (\d) left, \d+ s; slowest running: ", shown.decode())
    assert {int(done) + int(left) for done, left in states} == {5}
    assert states[0] == ("0", "5")
    assert int(states[-1][0]) > 2
    assert re.search(r"slowest running: ranks \d+ s", shown.decode())
    assert shown.count(b"\n") <= 2  # the closing line, and that the machine was busy
    assert all(len(one) < 100 for one in shown.decode().split("\r"))


def test_progress_is_a_plain_line_a_page_elsewhere(book: Book) -> None:
    lines = book.stage("--fresh").stdout.splitlines()
    states = [re.match(r"(\d) done, (\d) left, \d+ s: \S+: [\d.]+ s, ", line) for line in lines[:5]]
    assert [match and match.groups() for match in states] == [
        (str(done), str(5 - done)) for done in range(1, 6)
    ]
    assert "\x1b" not in "".join(lines)


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
