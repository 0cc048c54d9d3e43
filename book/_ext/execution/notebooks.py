"""The executed notebook of a page, as jupyter-cache keeps it and MyST-NB looks for it.

Left out: where it is written and whether it still holds (`cache.py`).
"""

from __future__ import annotations

import copy
from typing import Any

from jupyter_cache.cache.main import JupyterCacheBase  # type: ignore[import-untyped]
from nbformat import NO_CONVERT, from_dict, v4, writes

from execution.outputs import glue_output
from execution.pages import KERNELSPEC, Page, name_page_in_kernelspec


def executed_notebook(
    page: Page, cells: list[list[dict[str, Any]]], values: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """The key under which jupyter-cache knows a page, and the text of its notebook with outputs.

    The key covers code and kernelspec alone, so that MyST-NB finds the notebook from the page.
    Values of expressions ride on the first code cell.
    """
    sources = copy.deepcopy(page.notebook.cells)
    notebook = v4.new_notebook(cells=sources)  # type: ignore[no-untyped-call]
    notebook.metadata["kernelspec"] = dict(page.notebook.metadata.get("kernelspec", KERNELSPEC))
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    name_page_in_kernelspec(notebook, page.name)
    # The folder is of no use: what is asked for depends on the notebook alone.
    notebook, hashkey = JupyterCacheBase(".").create_hashed_notebook(notebook)
    glue = [glue_output(text, value) for text, value in values.items()]
    for number, (cell, shown) in enumerate(zip(notebook.cells, cells, strict=True), start=1):
        cell.id = f"cell-{number}"  # MyST-NB's reader draws them at random
        cell.execution_count = number
        plain = shown + (glue if number == 1 else [])
        cell.outputs = [from_dict(output) for output in plain]  # type: ignore[no-untyped-call]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    text: str = writes(notebook, NO_CONVERT)  # type: ignore[no-untyped-call]
    return {"hashkey": hashkey, "notebook": text}


def compile_schemas() -> None:
    """Let nbformat compile what it validates by: 0.1 s, once for all children."""
    notebook = v4.new_notebook(cells=[v4.new_code_cell()])  # type: ignore[no-untyped-call]
    notebook, _ = JupyterCacheBase(".").create_hashed_notebook(notebook)
    writes(notebook, NO_CONVERT)  # type: ignore[no-untyped-call]
