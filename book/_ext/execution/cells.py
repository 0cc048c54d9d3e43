"""What is done with a page's cells, whoever runs them: outputs judged, prose evaluated, a notebook made.

Left out: how a cell is run (`child.py`, `kernels.py`) and where the notebook is kept (`cache.py`).
"""

from __future__ import annotations

import copy
import json
import numbers
import re
from binascii import b2a_base64
from collections.abc import Callable
from typing import Any

from jupyter_cache.cache.main import JupyterCacheBase  # type: ignore[import-untyped]
from nbclient import NotebookClient
from nbformat import NO_CONVERT, NotebookNode, from_dict, v4, writes

from execution.pages import KERNELSPEC, Cell, Page, PageError, name_page_in_kernelspec

GLUE_PREFIX = "application/papermill.record/"  # MyST-NB takes such outputs out of the visible ones
ERROR_TYPE = "application/vnd.execution.error+json"

SHELL_SETTINGS: dict[str, dict[str, Any]] = {
    # Its thread would make every later fork of a page unsafe; too late once a shell exists.
    "HistoryManager": {"enabled": False},
    "InteractiveShell": {"colors": "nocolor", "autocall": 0},
    "InlineBackend": {"figure_formats": {"svg", "pdf"}, "close_figures": True},
}

LINE_IN_TRACEBACK = re.compile(r"Cell In\[(\d+)\], line (\d+)")
SVG_PROLOGUE = re.compile(r"\A.*?(?=<svg\b)", re.DOTALL)
SVG_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
SVG_EMPTY_PATH = re.compile(r"<path(?![^>]*\sd=)([^>]*)>")


def execute(
    page: Page,
    client: NotebookClient,
    run: Callable[[Cell, NotebookNode], int | None],
    ask: Callable[[str, int], dict[str, Any]],
) -> dict[str, str]:
    """The executed notebook of a page; raises PageError for whatever a reader must not see.

    `run` leaves a cell's outputs in the client's notebook, and says which line wrote on standard
    error; `ask` evaluates an expression as Jupyter does, after the cell of the given number.
    """
    values: dict[str, dict[str, Any]] = {}

    def evaluate_after(cells: int) -> None:
        for one in page.expressions:
            if one.cells_before == cells:
                value = plain(ask(one.text, cells))
                if value.get("ename") == "NameError":
                    continue  # perhaps the opening quotes a result from further down
                if values.setdefault(one.text, value) != value:  # which would a reader take?
                    what = f"the expression {one.text!r} has two values on this page"
                    raise PageError(cells, None, f"{what} (again in line {one.line})")

    evaluate_after(0)
    for cell in page.cells:
        place = client.nb.cells[cell.position]
        if "skip-execution" not in cell.tags:
            line = run(cell, place)
            judged(cell, place.outputs, line)
        evaluate_after(cell.number)
    for one in page.expressions:
        if one.text not in values:
            values[one.text] = plain(ask(one.text, len(page.cells)))
    for cell in page.cells:  # not before: a later cell may update what an earlier one displays
        place = client.nb.cells[cell.position]
        place.outputs = judged(cell, place.outputs, None)
    return executed_notebook(page, client.nb, values)


def judged(cell: Cell, outputs: list[Any], stderr_line: int | None) -> list[dict[str, Any]]:
    """A cell's outputs, plain, with neighbouring pieces of text joined."""
    found: list[dict[str, Any]] = []
    for output in map(plain, outputs):
        kind = output["output_type"]
        if kind == "error":
            output["traceback"] = (text := "\n".join(output["traceback"])).splitlines()
            if "raises-exception" not in cell.tags:
                places = LINE_IN_TRACEBACK.findall(text)
                lines = [int(line) for number, line in places if int(number) == cell.number]
                message = ": ".join([output["ename"], *output["evalue"].strip().splitlines()[:1]])
                raise PageError(cell.number, lines[-1] if lines else None, message, text)
        if kind == "stream" and output["name"] == "stderr":
            refuse_stderr(output["text"], cell.number, stderr_line)
        if kind == "stream" and found and found[-1]["output_type"] == "stream":
            found[-1]["text"] += output["text"]
        else:
            found.append(output)
    bundles = [output["data"] for output in found if "data" in output]
    images = [bundle for bundle in bundles if any(kind.startswith("image/") for kind in bundle)]
    texts = [str(bundle.get("text/plain")) for bundle in bundles if bundle not in images]
    missing = cell.shows_figure and not images
    if missing or any(text.startswith("<Figure size ") for text in texts):
        raise PageError(cell.number, None, "a figure cell without an image")
    return found


def refuse_stderr(text: str, cell: int, line: int | None) -> None:
    """Fail the page if anything, in any process, wrote on standard error."""
    if text:
        first = text.strip().splitlines()[0] if text.strip() else repr(text)
        raise PageError(cell, line, f"wrote on standard error: {first}", text)


def plain(value: Any) -> Any:
    """A message or an output as JSON can hold it, its SVG cleaned."""
    made = json.loads(json.dumps(value, default=plain_value))
    data = made.get("data", {})
    if isinstance(data.get("image/svg+xml"), str):
        data["image/svg+xml"] = clean_svg(data["image/svg+xml"])
    return made


def plain_value(value: Any) -> Any:
    """What Jupyter's own messages make of values that JSON does not know."""
    if isinstance(value, bytes):
        return b2a_base64(value, newline=False).decode("ascii")
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


def clean_svg(text: str) -> str:
    """An SVG without prologue, document type and metadata.

    The document type alone is an error in every EPUB. matplotlib draws a space as a path without
    `d`, which is one as well; it gets an empty one, since a `<use>` refers to it.
    """
    text = SVG_METADATA.sub("", SVG_PROLOGUE.sub("", text, count=1))
    return SVG_EMPTY_PATH.sub(r'<path d="M0 0"\1>', text)


def executed_notebook(
    page: Page, run: NotebookNode, values: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """The key under which jupyter-cache knows a page, and the text of its notebook with outputs.

    The key covers code and kernelspec alone, so that MyST-NB finds the notebook from the page.
    Values of expressions ride on the first code cell.
    """
    notebook = v4.new_notebook(cells=copy.deepcopy(run.cells))  # type: ignore[no-untyped-call]
    notebook.metadata["kernelspec"] = dict(page.notebook.metadata.get("kernelspec", KERNELSPEC))
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    name_page_in_kernelspec(notebook, page.name)
    # The folder is of no use: what is asked for depends on the notebook alone.
    notebook, hashkey = JupyterCacheBase(".").create_hashed_notebook(notebook)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"  # MyST-NB's reader draws them at random
        cell.execution_count = number
        for output in cell.outputs:
            if output["output_type"] == "execute_result":
                output["execution_count"] = number
        if number == 1:
            cell.outputs += [glue_output(text, value) for text, value in values.items()]
        cell.outputs = from_dict(cell.outputs)  # type: ignore[no-untyped-call]
    text: str = writes(notebook, NO_CONVERT)  # type: ignore[no-untyped-call]
    return {"hashkey": hashkey, "notebook": text}


def glue_output(expression: str, value: dict[str, Any]) -> dict[str, Any]:
    """The output by which an expression's value travels: invisible, found by the expression.

    An error travels too: it is reported only if the page really shows it.
    """
    error = {"ename": value.get("ename"), "evalue": value.get("evalue")}
    data = value["data"] if value["status"] == "ok" else {ERROR_TYPE: error}
    return {
        "output_type": "display_data",
        "data": {GLUE_PREFIX + kind: content for kind, content in data.items()},
        "metadata": {"scrapbook": {"name": expression, "mime_prefix": GLUE_PREFIX}},
    }


def compile_schemas() -> None:
    """Let nbformat compile what it validates by: 0.1 s, once for all children."""
    notebook = v4.new_notebook(cells=[v4.new_code_cell()])  # type: ignore[no-untyped-call]
    notebook, _ = JupyterCacheBase(".").create_hashed_notebook(notebook)
    writes(notebook, NO_CONVERT)  # type: ignore[no-untyped-call]
