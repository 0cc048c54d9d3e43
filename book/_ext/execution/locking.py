"""One lock file for a cache: stages keep each other out, and stay out while Sphinx reads.

On systems without `fcntl` (Windows) nothing is locked: run one build at a time there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]


def hold_lock(folder: Path, *, shared: bool, waiting: Callable[[], None] = lambda: None) -> int:
    """Lock a cache until the descriptor is closed; `waiting` is called once if it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    if fcntl is not None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, kind)
    return lock
