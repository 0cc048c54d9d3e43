"""Run pages in ordinary Jupyter kernels: slower, on every system, the same outputs in the cache.

Left out, against `forking.py`: CPU limits (a cell has a deadline on the clock), the order of text
that C code and other processes write (it may even come too late for its cell), and the end of
processes that a page leaves behind.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from execution import outputs, watch
from execution.evaluation import PageValues
from execution.forking import Conclude, Limits, Result
from execution.notebooks import executed_notebook
from execution.pages import Cell, Page
from execution.reports import CellError, failure_at

CELL_IN_TRACEBACK = re.compile(r"Cell In\[(\d+)\], line (\d+)")
REPORT = "__import__('json').dumps(__import__('execution_watch').report())"


def run_pages_in_kernels(
    pages: list[Page], conclude: Conclude, *, jobs: int, scope: watch.Scope, limits: Limits
) -> None:
    """Execute pages, each in a new kernel, and hand each one's result to `conclude`."""
    with ThreadPoolExecutor(jobs) as pool:
        for page, result in zip(
            pages, pool.map(lambda page: run_page(page, scope, limits), pages), strict=True
        ):
            conclude(page, *result)


def run_page(page: Page, scope: watch.Scope, limits: Limits) -> Result:
    """A page's result or its failure, and its seconds."""
    started = time.monotonic()
    notes = os.path.join(scope.notes, page.name.replace("/", "."))
    own_scope = dataclasses.replace(scope, notes=notes)
    done, failure, cpu = None, None, 0.0
    try:
        done, cpu = execute(page, own_scope, deadline_seconds=page.budget * limits.wall_slack)
    except CellError as error:
        failure = failure_at(page, error)
    return done, failure, {"wall": time.monotonic() - started, "cpu": cpu}


def execute(
    page: Page, scope: watch.Scope, *, deadline_seconds: float
) -> tuple[dict[str, Any], float]:
    """The page's executed notebook with what it used, and seconds of CPU."""
    settings = [
        f"--{name}.{key}={value}"
        for name, of in outputs.SHELL_SETTINGS.items()
        for key, value in of.items()
    ]
    client = NotebookClient(
        copy.deepcopy(page.notebook),
        timeout=deadline_seconds,
        allow_errors=True,
        extra_arguments=["--IPKernelApp.log_level=40", *settings],
        resources={"metadata": {"path": str(page.path.parent)}},
    )
    silent = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }  # a kernel echoes what it captures
    with client.setup_kernel(env={**os.environ, **watch.environment(scope)}, **silent):

        def evaluate(expressions: dict[str, str]) -> dict[str, Any]:
            assert client.kc is not None
            sent = client.kc.execute("", store_history=False, user_expressions=expressions)
            reply = client.wait_for_reply(sent)
            assert reply is not None
            values: dict[str, Any] = reply["content"]["user_expressions"]
            return values

        values = PageValues(page, lambda text: evaluate({"value": text})["value"])
        cells = []
        values.evaluate_after(0)
        for cell in page.cells:
            cells.append(run_cell(client, cell))
            values.evaluate_after(cell.number)
        values.evaluate_the_rest()
        report = json.loads(
            ast.literal_eval(evaluate({"report": REPORT})["report"]["data"]["text/plain"])
        )
    cpu = report.pop("cpu")
    return {**executed_notebook(page, cells, values.found), **report}, cpu


def run_cell(client: NotebookClient, cell: Cell) -> list[dict[str, Any]]:
    """The outputs of one cell; raises CellError for whatever a reader must not see."""
    try:
        executed = client.execute_cell(
            client.nb.cells[cell.position], cell.position, execution_count=cell.number
        )
    except CellTimeoutError as error:
        raise CellError(cell.number, None, "hangs: stopped at its deadline", str(error)) from error
    except DeadKernelError as error:
        raise CellError(cell.number, None, "the kernel died", str(error)) from error
    found = [outputs.plain_output(output) for output in executed.outputs]
    for output in found:
        if output["output_type"] == "error" and not cell.may_raise:
            text = "\n".join(output["traceback"])
            lines = [
                int(line)
                for number, line in CELL_IN_TRACEBACK.findall(text)
                if int(number) == cell.number
            ]
            message = ": ".join([output["ename"], *output["evalue"].strip().splitlines()[:1]])
            raise CellError(cell.number, lines[-1] if lines else None, message, text)
        if output["output_type"] == "stream" and output["name"] == "stderr":
            first = output["text"].strip().splitlines()[:1]
            raise CellError(
                cell.number, None, f"wrote on standard error: {''.join(first)}", output["text"]
            )
    if outputs.missing_image(found, expected=cell.shows_figure):
        raise CellError(cell.number, None, "a figure cell without an image")
    return outputs.merged_streams(found)
