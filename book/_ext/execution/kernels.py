"""Run pages in ordinary Jupyter kernels: slower, on every system, the same outputs in the cache.

Left out, against `forking.py`: CPU limits (a cell has a deadline on the clock), the order of text
that C code and other processes write (it may even come too late for its cell).
"""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from execution import cells, watch
from execution.forking import Result, read_notes
from execution.pages import Cell, Page, PageError

if TYPE_CHECKING:
    from execution.stage import Options

SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # it echoes what it captures


def run_pages(
    pages: list[Page], options: Options, scope: watch.Scope, folder: Path
) -> Iterator[Result]:
    """Execute pages, each in a new kernel; their notes lie in a folder."""
    with ThreadPoolExecutor(options.jobs) as pool:
        yield from pool.map(lambda page: run_page(page, options.cpu_slack, scope, folder), pages)


def run_page(page: Page, slack: float, scope: watch.Scope, folder: Path) -> Result:
    """What comes of a page."""
    started = time.monotonic()
    notes = folder / page.name.replace("/", ".")
    scope = dataclasses.replace(scope, notes=str(notes))
    options = ["IPKernelApp.log_level=40"]
    for name, settings in cells.SHELL_SETTINGS.items():
        options += [f"{name}.{key}={value}" for key, value in settings.items()]
    client = NotebookClient(
        copy.deepcopy(page.notebook),
        timeout=page.budget * slack,
        allow_errors=True,
        extra_arguments=[f"--{one}" for one in options],
        resources={"metadata": {"path": str(page.path.parent)}},
    )

    def run(cell: Cell, place: NotebookNode) -> None:
        try:
            client.execute_cell(place, cell.position, execution_count=cell.number)
        except CellTimeoutError as error:
            message = "hangs: stopped at its deadline"
            raise PageError(cell.number, None, message, str(error)) from error
        except DeadKernelError as error:
            raise PageError(cell.number, None, "the kernel died", str(error)) from error

    def ask(expression: str, cell: int = 0) -> Any:
        assert client.kc is not None
        sent = client.kc.execute("", store_history=False, user_expressions={"value": expression})
        reply: Any = client.wait_for_reply(sent)
        return reply["content"]["user_expressions"]["value"]

    outcome: dict[str, list[str]] | PageError
    try:
        with client.setup_kernel(env={**os.environ, **watch.environment(scope)}, **SILENT):
            done = cells.execute(page, client, run, ask)
            ask("__import__('execution_watch').finish()")
        outcome = {
            **read_notes(notes.read_bytes()),
            **{kind: [text] for kind, text in done.items()},
        }
    except PageError as failure:
        outcome = failure
    cpu = 0.0 if isinstance(outcome, PageError) else float(outcome["cpu"][0])
    return Result(page, outcome, {"wall": time.monotonic() - started, "cpu": cpu, "waited": 0.0})
