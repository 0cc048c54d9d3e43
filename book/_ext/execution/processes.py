"""Processes that leave nothing behind: trees of them, their CPU time, their end.

Linux only: reads /proc and lets a process adopt the orphans below it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make every orphan among the descendants a child of this process.

    A process that moved to a session of its own is found again this way.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """Children of a process, of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes below one, parents first."""
    below = children(pid)
    return below + [deeper for child in below for deeper in descendants(child)]


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of processes, with that of the children they have waited for."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; the numbers follow it.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def kill(pids: Iterable[int]) -> None:
    """SIGKILL; those that are gone are no matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def kill_descendants(pid: int, *, deadline_seconds: float = 5.0) -> None:
    """Kill everything below a process that adopts orphans; if it is this one, wait for them."""
    end = time.monotonic() + deadline_seconds
    while (below := alive(descendants(pid))) and time.monotonic() < end:
        kill(below)
        if pid == os.getpid():
            reap(children(pid))
        time.sleep(0.005)


def kill_tree(pid: int) -> None:
    """Kill a page's child with all that it started, sessions of their own included.

    It is stopped first, so that it starts nothing more; its orphans stay below it until it dies.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    kill_descendants(pid)
    kill([pid])


def reap(pids: Iterable[int]) -> None:
    """Wait, without blocking, for children."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def alive(pids: Iterable[int]) -> list[int]:
    """Those that are not zombies."""
    running = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                running.append(pid)
    return running
