"""Run pages in forked children: schedule them, hold them to their budgets, leave nothing behind.

The parent imports what pages share and runs none of it. If the parent is killed, a guardian
process ends the pages. Linux only; elsewhere `kernels.py` fills the same cache.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeAlias

from execution import processes
from execution.pages import Page
from execution.reports import CellError, Failure, Progress, failure_at
from execution.watch import Scope, compile_modules_from_source, files_of_modules

POLL_SECONDS = 0.2
PROGRESS_SECONDS = 0.1  # of CPU: less than that in half a budget is waiting, not computing
CELL_FRAME = re.compile(r'File "<ipython-input-(\d+)-\w+>", line (\d+)')

# What a first figure imports: a third of a second in each child.
COMPANIONS = {
    "matplotlib.pyplot": (
        "matplotlib.backends.backend_pdf",
        "matplotlib.backends.backend_svg",
        "matplotlib_inline.backend_inline",
    )
}

# What came of a page: what it gave (or None), its failure (or None), and its seconds.
Result: TypeAlias = "tuple[dict[str, Any] | None, Failure | None, dict[str, float]]"
Conclude: TypeAlias = (
    "Callable[[Page, dict[str, Any] | None, Failure | None, dict[str, float]], None]"
)


@dataclass(frozen=True)
class Limits:
    """How far a page may go beyond its budget: slower machines need more seconds of both kinds."""

    cpu_slack: float = 3.0
    wall_slack: float = 6.0  # a page that waits instead of computing is stopped by this one


@dataclass
class Child:
    """A page at work."""

    page: Page
    pid: int
    handle: int
    messages: Connection
    files: tuple[int, int]  # its stack, if asked for, and its notes of files used; both in memory
    started: float
    cell: int = 0
    listening: bool = True
    result: dict[str, Any] | None = None
    stopped: str = ""
    cpu: float = 0.0  # seconds, when last it was seen to compute
    computed: float = 0.0  # and the moment of that


def run_pages(
    pages: list[Page],
    conclude: Conclude,
    *,
    jobs: int,
    preload: tuple[str, ...],
    scope: Scope,
    limits: Limits,
    progress: Progress,
    lock: int,
) -> None:
    """Execute pages, given in order of preference, and hand each one's result to `conclude`."""
    with guardian(lock) as guard:
        compile_modules_from_source(scope)
        import_shared(preload, scope)

        processes.adopt_orphans()
        gc.freeze()  # collections in the children then do not copy the parent's memory
        waiting, running = list(pages), list[Child]()
        try:
            while waiting or running:
                while (page := next_that_fits(waiting, running, jobs)) is not None:
                    waiting.remove(page)
                    running.append(start(page, scope, guard, lock))
                for child in finished(running, limits):
                    running.remove(child)
                    status = end(child, running, guard)
                    conclude(child.page, *result_of(child, status, limits))
                now = time.monotonic()
                progress.show([(child.page.name, now - child.started) for child in running])
        finally:
            for child in running:
                processes.kill_tree(child.pid)


def keep_watch(announcements: int) -> None:
    """Follow which pages run until the parent is gone, then kill those that are left."""
    os.setsid()  # what kills the parent's group must not kill its guardian
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pages: set[int] = set()
    with open(announcements) as lines:
        for line in lines:
            page = int(line)
            pages = pages | {page} if page > 0 else pages - {-page}
    for page in pages:
        processes.kill_tree(page)


def import_shared(modules: tuple[str, ...], scope: Scope) -> None:
    """Import, once, what the pages' children share."""
    for module in (*modules, "execution.child"):
        importlib.import_module(module)
        for companion in COMPANIONS.get(module, ()):
            importlib.import_module(companion)
    from execution.notebooks import compile_schemas

    compile_schemas()
    own = [file for file in files_of_modules() if scope.covers(file)]
    if own:
        # What a page uses is seen in its own process: shared files would seem used by all or none.
        listed = ", ".join(own)
        raise SystemExit(f"execution: --preload brought in files of the repository: {listed}")


@dataclass(frozen=True)
class Guard:
    """The guardian as the parent sees it: its process and the pipe on which pages are announced."""

    pid: int
    announce: int


@contextmanager
def guardian(lock: int) -> Iterator[Guard]:
    """A process that kills the announced pages when this one disappears.

    It holds `lock` until they are gone, so that the next stage does not meet them.
    """
    listening, announce = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(announce)
            keep_watch(listening)
        finally:
            os._exit(0)
    os.close(listening)
    try:
        yield Guard(pid, announce)
    finally:
        os.close(announce)
        os.waitpid(pid, 0)


def next_that_fits(waiting: list[Page], running: list[Child], jobs: int) -> Page | None:
    """The first page whose processes find room among the jobs."""
    room = jobs - sum(min(child.page.processes, jobs) for child in running)
    return next((page for page in waiting if min(page.processes, jobs) <= room), None)


def start(page: Page, scope: Scope, guard: Guard, lock: int) -> Child:
    """Fork the child of a page."""
    from execution import child

    receiving, sending = Pipe(duplex=False)
    stack_file, notes = os.memfd_create("stack"), os.memfd_create("notes")
    own_scope = dataclasses.replace(scope, notes=f"/proc/{os.getpid()}/fd/{notes}")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            # The child announces itself: were it the parent, a kill in between would lose it.
            os.write(guard.announce, b"%d\n" % os.getpid())
            for descriptor in (guard.announce, lock):
                os.close(descriptor)
            receiving.close()
            child.run(
                page, lambda it: sending.send_bytes(json.dumps(it).encode()), stack_file, own_scope
            )
        finally:
            os._exit(1)  # whatever happens, nothing of the parent's code may run here
    sending.close()
    return Child(
        page, pid, os.pidfd_open(pid), receiving, (stack_file, notes), started=time.monotonic()
    )


def finished(running: list[Child], limits: Limits) -> list[Child]:
    """The children that have ended, after waiting a little; those over their limits are stopped."""
    handles = [child.handle for child in running]
    ready = wait(
        [*handles, *[child.messages for child in running if child.listening]], POLL_SECONDS
    )
    for child in running:
        take_messages(child)
        if child.handle not in ready and child.result is None:
            enforce(limits, child)
    return [child for child in running if child.handle in ready]


def take_messages(child: Child) -> None:
    """Read what a child has sent: the cell it begins, or its result."""
    while child.listening and child.messages.poll():
        try:
            message = json.loads(child.messages.recv_bytes())
        except EOFError:
            child.listening = False
        else:
            if "cell" in message:
                child.cell = message["cell"]
            else:
                child.result = message


def enforce(limits: Limits, child: Child) -> None:
    """Stop a page that computes too much or waits too long; its stack says at which line."""
    budget = child.page.budget
    wall = time.monotonic() - child.started
    cpu = processes.cpu_seconds([child.pid, *processes.descendants(child.pid)])
    if cpu > budget * limits.cpu_slack:
        child.stopped = f"stopped after {cpu:.0f} s of CPU; its budget is {budget:g} s"
    elif hangs(child, cpu, limits):
        child.stopped = (
            f"hangs: stopped after {wall:.0f} s with {cpu:.1f} s of CPU; its budget is {budget:g} s"
        )
    if child.stopped:
        ask_for_stack(child)
        processes.kill_tree(child.pid)


def hangs(child: Child, cpu: float, limits: Limits) -> bool:
    """Whether a page is past its deadline on the clock and does not compute either.

    One that is merely starved on a busy machine still computes; it has four times as long.
    """
    now = time.monotonic()
    if cpu > child.cpu + PROGRESS_SECONDS:
        child.cpu, child.computed = cpu, now
    late = (now - child.started) / (child.page.budget * limits.wall_slack)
    return late > 4 or (late > 1 and now - child.computed > child.page.budget / 2)


def ask_for_stack(child: Child) -> None:
    """Let a child write where it is, even if it is inside compiled code."""
    from execution.child import STACK_SIGNAL

    with suppress(ProcessLookupError):
        os.kill(child.pid, STACK_SIGNAL)
    end_of_patience = time.monotonic() + 0.5
    while os.fstat(child.files[0]).st_size == 0 and time.monotonic() < end_of_patience:
        time.sleep(0.01)


def end(child: Child, running: list[Child], guard: Guard) -> int:
    """Wait for a child, release what it held, kill what it left; its wait status."""
    take_messages(child)
    os.write(guard.announce, b"%d\n" % -child.pid)  # first: once waited for, its number is free
    _, status = os.waitpid(child.pid, 0)
    child.messages.close()
    os.close(child.handle)
    # All other children are known, so whatever else has come to us was left by a page that died.
    known = {guard.pid, *(one.pid for one in running)}
    for stray in set(processes.children(os.getpid())) - known:
        processes.kill_tree(stray)
        with suppress(ChildProcessError):
            os.waitpid(stray, 0)
    return status


def result_of(child: Child, status: int, limits: Limits) -> Result:
    """A child's result or its failure, and its seconds."""
    stack = os.pread(child.files[0], 1 << 20, 0).decode("utf-8", "replace")
    for file in child.files:
        os.close(file)
    # A signal for the stack may have ended a wait, and a result come after all: still too late.
    if child.result is None or child.stopped:
        own = stack.split("/IPython/core/", 1)[0].rpartition("\n")[0]  # from there on it is ours
        line = line_in_stack(stack, child.cell)
        error = CellError(child.cell, line, child.stopped or death(status), own)
        seconds = {"wall": time.monotonic() - child.started, "cpu": 0.0}
        return None, failure_at(child.page, error), seconds
    seconds = child.result["seconds"]
    if failed := child.result.get("failed"):
        return None, failure_at(child.page, CellError(**failed)), seconds
    if seconds["cpu"] > child.page.budget * limits.cpu_slack:
        took, budget = seconds["cpu"], child.page.budget
        error = CellError(0, None, f"took {took:.0f} s of CPU; its budget is {budget:g} s")
        return None, failure_at(child.page, error), seconds
    return child.result["done"], None, seconds


def death(status: int) -> str:
    """How a process ended that did not hand anything back."""
    if os.WIFSIGNALED(status):
        return f"the process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the process ended with exit code {os.WEXITSTATUS(status)}"


def line_in_stack(stack: str, cell: int) -> int | None:
    """Line of the cell at which a stack (latest call first) stands."""
    lines = [int(line) for number, line in CELL_FRAME.findall(stack) if int(number) == cell]
    return lines[0] if lines else None
