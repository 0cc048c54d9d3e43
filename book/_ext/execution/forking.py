"""Run pages in forked children: schedule them, hold them to their budgets, leave nothing behind.

The parent imports what pages share and runs none of it. Linux only; elsewhere `kernels.py` fills
the same cache.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import re
import select
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from execution import processes
from execution.pages import Page, PageError
from execution.reports import Progress
from execution.watch import Scope, compile_modules_from_source, files_of_modules

if TYPE_CHECKING:
    from execution.stage import Options

POLL_SECONDS = 0.2
CELL_FRAME = re.compile(r'File "<ipython-input-(\d+)-\w+>", line (\d+)')

# What a first figure imports: a third of a second in each child.
COMPANIONS = (
    "matplotlib.backends.backend_pdf",
    "matplotlib.backends.backend_svg",
    "matplotlib_inline.backend_inline",
)

Notes = dict[str, list[str]]  # by kind: file, folder, missing, path, version, cell, done ...


@dataclass(frozen=True)
class Result:
    """What came of a page: its notes and executed notebook, or its failure; and its seconds."""

    page: Page
    outcome: Notes | PageError
    seconds: dict[str, float]


@dataclass
class Child:
    """A page at work."""

    page: Page
    pid: int
    handle: int
    notes: int  # files in memory: what the page and the stage note of it ...
    stderr: int  # ... and what it writes on standard error, its stack among it
    started: float
    looked: float  # when it was last looked at, and the seconds of CPU that it had used then
    cpu: float = 0.0
    waited: float = 0.0  # seconds in which none of its processes could have run
    stopped: str = ""


def run_pages(
    pages: list[Page], options: Options, scope: Scope, progress: Progress
) -> Iterator[Result]:
    """Execute pages, given in order of preference."""
    progress.show([("what pages share", 0.0)])
    import_shared(options.preload, scope)
    jobs = options.jobs
    gc.freeze()  # collections in the children then do not copy the parent's memory
    waiting, running = list(pages), list[Child]()
    while waiting or running:
        while (
            page := next_that_fits(waiting, [child.page for child in running], jobs)
        ) is not None:
            waiting.remove(page)
            running.append(start(page, scope))
        now = time.monotonic()
        progress.show([(child.page.name, now - child.started) for child in running])
        ended = select.select([child.handle for child in running], [], [], POLL_SECONDS)[0]
        for child in list(running):
            if child.handle in ended:
                running.remove(child)
                yield end(child, running, options.cpu_slack)
            else:
                look_after(child, options)
    progress.show([])


def import_shared(modules: str, scope: Scope) -> None:
    """Import, once, what the pages' children share (`a,b,c`)."""
    compile_modules_from_source(scope)
    for module in (*filter(None, modules.split(",")), "execution.child"):
        importlib.import_module(module)
    if "matplotlib.pyplot" in sys.modules:
        for module in COMPANIONS:
            importlib.import_module(module)
    importlib.import_module("execution.cells").compile_schemas()
    own = [file for file in files_of_modules() if scope.covers(file)]
    if own:
        # What a page uses is seen in its own process: shared files would seem used by all or none.
        listed = ", ".join(own)
        raise SystemExit(f"execution: --preload brought in files of the repository: {listed}")


def next_that_fits(waiting: list[Page], running: list[Page], jobs: int) -> Page | None:
    """The first page whose processes find room among the jobs."""
    room = jobs - sum(min(page.processes, jobs) for page in running)
    return next((page for page in waiting if min(page.processes, jobs) <= room), None)


def start(page: Page, scope: Scope) -> Child:
    """Fork the child of a page."""
    from execution import child

    notes, stderr = child.memory_file("notes"), child.memory_file("stderr")
    own_scope = dataclasses.replace(scope, notes=f"/proc/{os.getpid()}/fd/{notes}")
    sys.stdout.flush()
    if pid := os.fork():
        now = time.monotonic()
        return Child(page, pid, os.pidfd_open(pid), notes, stderr, started=now, looked=now)
    try:
        child.run(page, own_scope, stderr)
    finally:
        os._exit(1)  # whatever happens, nothing of the parent's code may run here


def look_after(child: Child, options: Options) -> None:
    """Stop a page that computes too much or waits too long; its stack says at which line.

    A page waits while none of its processes runs, wants to run, or reads a disk: one that is merely
    starved on a busy machine does not.
    """
    now, family, budget = time.monotonic(), processes.tree(child.pid), child.page.budget
    cpu = processes.cpu_seconds(family)
    if cpu == child.cpu and not any(fields[0] in "RD" for fields in family.values()):
        child.waited += now - child.looked
    child.looked, child.cpu = now, cpu
    if child.waited > budget * options.wall_slack:
        child.stopped = f"hangs: stopped after {child.waited:.1f} s of waiting"
    elif cpu > budget * options.cpu_slack:
        child.stopped = f"stopped after {cpu:.1f} s of CPU"
    if child.stopped:
        ask_for_stack(child)
        processes.kill_tree(child.pid)


def ask_for_stack(child: Child) -> None:
    """Let a child write where it is, even if it is inside compiled code."""
    from execution.child import STACK_SIGNAL

    before = os.fstat(child.stderr).st_size
    with suppress(ProcessLookupError):
        os.kill(child.pid, STACK_SIGNAL)
    end_of_patience = time.monotonic() + 0.5
    while os.fstat(child.stderr).st_size == before and time.monotonic() < end_of_patience:
        time.sleep(0.01)


def end(child: Child, running: list[Child], slack: float) -> Result:
    """Wait for a child, kill what it left, release what it held; its result."""
    _, status, usage = os.wait4(child.pid, 0)
    known = {one.pid for one in running}
    for stray, fields in processes.tree(os.getpid()).items():
        if int(fields[1]) == os.getpid() and stray not in known:  # left by a page that died
            processes.kill_tree(stray)
            with suppress(ChildProcessError):
                os.waitpid(stray, 0)
    notes, stderr = (whole(file) for file in (child.notes, child.stderr))
    for file in (child.handle, child.notes, child.stderr):
        os.close(file)
    cpu, wall = usage.ru_utime + usage.ru_stime, time.monotonic() - child.started
    seconds = {"wall": wall, "cpu": max(cpu, child.cpu), "waited": child.waited}
    return Result(
        child.page, outcome(child, status, cpu, slack, read_notes(notes), stderr), seconds
    )


def whole(file: int) -> bytes:
    """What an open file holds."""
    return os.pread(file, os.fstat(file).st_size, 0)


def read_notes(content: bytes) -> Notes:
    """The notes on a page (`watch.py`, `child.py`), by kind."""
    notes: Notes = defaultdict(list)
    for line in content.split(b"\n"):
        kind, _, text = os.fsdecode(line).partition("\t")
        notes[kind].append(text)
    return notes


def outcome(
    child: Child, status: int, cpu: float, slack: float, notes: Notes, stderr: bytes
) -> Notes | PageError:
    """What a child has noted, its executed notebook among it, or why it failed."""
    budget = f"; its budget is {child.page.budget:g} s"
    # A signal for the stack may have ended a wait, and a result come after all: still too late.
    if child.stopped or not notes["done"]:
        stack = stderr.decode("utf-8", "replace")
        cell = int(notes["cell"][-1]) if notes["cell"] else 0
        lines = [int(line) for number, line in CELL_FRAME.findall(stack) if int(number) == cell]
        own = stack.split("/IPython/core/", 1)[0].rpartition("\n")[0]  # from there on it is ours
        message = child.stopped + budget if child.stopped else death(status)
        return PageError(cell, lines[0] if lines else None, message, own)
    done: dict[str, Any] = json.loads(notes["done"][0])
    if failure := done.get("failure"):
        return PageError(**failure)
    if cpu > child.page.budget * slack:
        return PageError(0, None, f"took {cpu:.1f} s of CPU{budget}")
    return {**notes, "hashkey": [done["hashkey"]], "notebook": [done["notebook"]]}


def death(status: int) -> str:
    """How a process ended that did not hand anything back."""
    if os.WIFSIGNALED(status):
        return f"the process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the process ended with exit code {os.WEXITSTATUS(status)}"
