"""Lets a Python process that a page started note the files it uses (see `execution/watch.py`)."""

import contextlib
import importlib.util
import os
import sys

if "EXECUTION_WATCH" in os.environ:
    _path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "watch.py")
    _spec = importlib.util.spec_from_file_location("execution_watch", _path)
    if _spec is not None and _spec.loader is not None:
        _watch = sys.modules["execution_watch"] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(_watch)
        with contextlib.suppress(OSError):  # the page that started this process may be over
            _watch.start(_watch.scope_in(os.environ["EXECUTION_WATCH"]))
