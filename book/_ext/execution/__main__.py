"""Command line of the execution stage: `python -m execution BOOK --cache DIR [PAGES...]`."""

from __future__ import annotations

import argparse
import os
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
SHAPE_OUTPUT = {
    "COLUMNS",
    "LINES",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "PYTHONWARNINGS",
    "PYTHONSTARTUP",
}

OPTIONS = {  # the defaults stand in `stage.Options`
    "--jobs": {"type": int, "help": "pages at a time"},
    "--preload": {"help": "modules to import once, before pages are forked: a,b,c"},
    "--locks": {"type": Path, "help": "constraints file: only its packages' versions count"},
    "--why": {"metavar": "PAGE", "help": "say why a page ran or would run, and run nothing"},
    "--fresh": {"action": "store_true", "help": "execute every page, whatever the cache says"},
    "--kernels": {"action": "store_true", "help": "ordinary Jupyter kernels instead of forks"},
    "--cpu-slack": {"type": float, "help": "a budget's multiple that stops a page"},
    "--wall-slack": {"type": float, "help": "the same for seconds in which a page only waits"},
}


def main() -> int:
    """Parse the command line and run the stage; the exit code."""
    settle_surroundings()
    from execution.cache import Cache
    from execution.processes import go_on_guarded
    from execution.stage import Options, Stage

    parser = argparse.ArgumentParser(prog="python -m execution", description=__doc__)
    parser.add_argument("book", type=Path, help="folder of the pages (Sphinx's source folder)")
    parser.add_argument("pages", nargs="*", help="only these pages, by name or path")
    parser.add_argument("--cache", type=Path, required=True, help="nb_execution_cache_path")
    for name, details in OPTIONS.items():
        parser.add_argument(name, **details)  # type: ignore[arg-type]
    options = parser.parse_intermixed_args(namespace=Options())
    options.book, options.cache = options.book.resolve(), options.cache.resolve()
    os.environ["IPYTHONDIR"] = str(options.cache / "ipython")  # no user's start-up files
    if options.why:
        Stage(options).explain(options.why)
        return 0
    try:
        Cache(options.cache).lock(shared=False)  # until this process and all below it are gone
    except OSError as error:
        print(f"execution: the cache cannot be written: {error}")
        return 1
    if sys.platform == "linux":
        go_on_guarded()
    return Stage(options).bring_up_to_date()


def settle_surroundings() -> None:
    """Start again with the variables that pages need: some are read at a start only."""
    wanted = {name: value for name, value in os.environ.items() if name not in SHAPE_OUTPUT}
    wanted |= SURROUNDINGS
    if wanted != dict(os.environ):
        command = [sys.executable, "-m", "execution", *sys.argv[1:]]
        if os.name == "nt":  # exec leaves a new process there, and its exit code is lost
            sys.exit(subprocess.run(command, env=wanted).returncode)
        os.execve(sys.executable, command, wanted)


if __name__ == "__main__":
    sys.exit(main())
