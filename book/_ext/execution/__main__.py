"""Command line of the execution stage: `python -m execution BOOK --cache DIR [PAGES...]`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

THREADS = os.environ.get("EXECUTION_THREADS", "1")
SURROUNDINGS = {
    # One thread each, so that pages can fork and results do not depend on the number of cores.
    "OMP_NUM_THREADS": THREADS,
    "OPENBLAS_NUM_THREADS": THREADS,
    "MKL_NUM_THREADS": THREADS,
    # Nothing from a network, nothing on standard error after a fork.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The same bytes on every machine and in every run.
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "315532800",  # 1980: the first year that every archive format can hold
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MATPLOTLIBRC": str(Path(__file__).with_name("matplotlibrc")),
}
SHAPE_OUTPUT = (
    "COLUMNS",
    "LINES",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "PYTHONWARNINGS",
    "PYTHONSTARTUP",
)


def main() -> int:
    """Parse the command line and run the stage; the exit code."""
    settle_surroundings()
    from execution.forking import Limits
    from execution.stage import Options, execute_book, explain

    given = parser().parse_intermixed_args()
    book = given.book.resolve()
    options = Options(
        book=book,
        cache=given.cache.resolve(),
        root=(given.root or repository_of(book)).resolve(),
        jobs=given.jobs,
        preload=tuple(filter(None, given.preload.split(","))),
        locks=given.locks,
        exclude=tuple(given.exclude),
        fresh=given.fresh,
        kernels=given.kernels,
        limits=Limits(given.cpu_slack, given.wall_slack),
    )
    os.environ["IPYTHONDIR"] = str(options.cache / "ipython")  # no user's start-up files
    if given.why:
        return explain(options, given.why)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave in order, with the pages ended
    try:
        return execute_book(options, given.pages)
    except KeyboardInterrupt:
        print("\nexecution: interrupted; what was executed so far is kept", flush=True)
        return 130


def settle_surroundings() -> None:
    """Start again with the variables that pages need: some are read at a start only."""
    wanted = {**os.environ, **SURROUNDINGS}
    for name in SHAPE_OUTPUT:
        wanted.pop(name, None)
    if wanted != dict(os.environ):
        command = [sys.executable, "-m", "execution", *sys.argv[1:]]
        if os.name == "nt":  # exec leaves a new process there, and its exit code is lost
            sys.exit(subprocess.run(command, env=wanted).returncode)
        os.execve(sys.executable, command, wanted)


def repository_of(book: Path) -> Path:
    """The nearest folder above that git knows, else the book's own parent."""
    return next((folder for folder in book.parents if (folder / ".git").exists()), book.parent)


def parser() -> argparse.ArgumentParser:
    """The options, as `--help` shows them."""
    made = argparse.ArgumentParser(prog="python -m execution", description=__doc__)
    made.add_argument("book", type=Path, help="folder of the pages (Sphinx's source folder)")
    made.add_argument("pages", nargs="*", help="only these pages, by name or path")
    made.add_argument(
        "--cache", type=Path, required=True, help="folder of the cache (nb_execution_cache_path)"
    )
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="pages at a time")
    made.add_argument(
        "--preload", default="", help="modules to import once, before pages are forked: a,b,c"
    )
    made.add_argument(
        "--locks", type=Path, help="constraints file: only its packages' versions count"
    )
    made.add_argument(
        "--root", type=Path, help="repository whose files count (default: the book's)"
    )
    made.add_argument(
        "--exclude", action="append", default=[], help="pattern of page names to leave out"
    )
    made.add_argument(
        "--fresh", action="store_true", help="execute every page, whatever the cache says"
    )
    made.add_argument(
        "--why", metavar="PAGE", help="say why a page ran or would run, and run nothing"
    )
    made.add_argument(
        "--kernels", action="store_true", help="ordinary Jupyter kernels instead of forks"
    )
    made.add_argument(
        "--cpu-slack", type=float, default=3.0, help="a budget's multiple that stops a page"
    )
    made.add_argument(
        "--wall-slack", type=float, default=6.0, help="the same for seconds on the clock"
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
