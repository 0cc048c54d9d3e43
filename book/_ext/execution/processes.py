"""Processes that leave nothing behind: trees of them, and a guardian that ends what is left.

Linux only: reads /proc and lets a process adopt the orphans below it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans(*, die_with_parent: bool) -> None:
    """Make every orphan among the descendants a child of this process.

    A process that moved to a session of its own is found again this way.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if die_with_parent:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def tree(pid: int) -> dict[int, list[str]]:
    """A process and all below it, parents first, with fields of /proc/PID/stat from the state on."""
    found: dict[int, list[str]] = {}
    with contextlib.suppress(OSError):  # it may be gone meanwhile
        # The name, in parentheses, may hold anything; the fields follow it.
        found[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found |= tree(int(child))
    return found


def cpu_seconds(processes: dict[int, list[str]]) -> float:
    """CPU time of processes, with that of the children they have waited for."""
    ticks = sum(int(field) for fields in processes.values() for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_below(pid: int) -> None:
    """Kill everything below a process that adopts orphans; if it is this one, wait for them."""
    for _ in range(1000):  # some 5 s, should the system not let one die
        left = [one for one, fields in tree(pid).items() if one != pid and fields[0] not in "ZX"]
        if not left:
            return
        for one in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)
        if pid == os.getpid():
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        time.sleep(0.005)


def kill_tree(pid: int) -> None:
    """Kill a page's child with all that it started, sessions of their own included.

    It is stopped first, so that it starts nothing more; its orphans stay below it until it dies.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        kill_below(pid)
        os.kill(pid, signal.SIGKILL)


def go_on_guarded() -> None:
    """Go on in a process below a guardian; the calling one waits and leaves with its exit code.

    The guardian has a session of its own, so that what kills the caller's group does not kill it.
    However the caller or the process below ends, nothing below the guardian outlives it, and open
    files (a lock) are held until then.
    """
    sys.stdout.flush()
    caller_is_gone, held_by_caller = os.pipe()
    if guardian := os.fork():
        os.close(caller_is_gone)
        wait_for(guardian, held_by_caller)
    os.setsid()
    os.close(held_by_caller)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans(die_with_parent=False)
    if worker := os.fork():
        ended = select.select([caller_is_gone, os.pidfd_open(worker)], [], [])[0]
        code = 1 if caller_is_gone in ended else exit_code(worker)
        kill_below(os.getpid())
        os._exit(code)
    os.close(caller_is_gone)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    adopt_orphans(die_with_parent=True)


def wait_for(guardian: int, held: int) -> NoReturn:
    """Leave with the guardian's exit code; at an interruption, when it has ended everything."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(exit_code(guardian))
    except KeyboardInterrupt:
        print("\nexecution: interrupted; what was executed so far is kept", flush=True)
        sys.exit(130)
    finally:
        os.close(held)
        with contextlib.suppress(ChildProcessError):  # it may have been waited for
            os.waitpid(guardian, 0)


def exit_code(pid: int) -> int:
    """Wait for a process; its exit code, 1 if a signal ended it."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 1
