"""Read a page: its code cells, the expressions in its prose, and what its front matter asks for.

Left out: everything that Sphinx does with the page afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

DEFAULT_BUDGET = 10.0  # seconds of CPU, of the page and of every process it starts
LARGEST_BUDGET = 60.0

KERNELSPEC = {"name": "python3", "display_name": "Python 3"}  # for pages that name none

# Block syntax that decides where a fence is nested; a nested cell is not a cell (as for MyST-NB).
BLOCK_SYNTAX = {"amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"}

NOTEBOOK = re.compile(r"^\s*(file_format:\s*mystnb|format_name:\s*myst)\s*$", re.MULTILINE)
EXPRESSION = re.compile(
    r"\{eval\}(?P<ticks>`+)(?P<role>.+?)(?P=ticks)"
    r"|^[ \t>]*(?:`{3,}|:{3,}|~{3,})\{eval(?::figure)?\}[ \t]+(?P<directive>\S[^\n]*?)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(eq=False)
class PageError(Exception):
    """Why a page does not pass: the cell (0: the page itself), the line in it, the whole story."""

    cell: int
    line: int | None
    message: str
    details: str = ""


@dataclass(frozen=True)
class Cell:
    """One code cell: its place in the notebook, its source and where that begins on the page."""

    position: int
    number: int
    source: str
    line: int
    tags: tuple[str, ...]
    shows_figure: bool


@dataclass(frozen=True)
class Expression:
    """An expression in prose or in a caption, and the number of code cells that precede it."""

    text: str
    cells_before: int
    line: int


@dataclass(frozen=True)
class Page:
    """What the stage needs of one page; `source` is the fingerprint of its whole text."""

    name: str
    path: Path
    source: str
    cells: tuple[Cell, ...]
    expressions: tuple[Expression, ...]
    budget: float
    processes: int
    notebook: NotebookNode


def page_paths(book: Path) -> dict[str, Path]:
    """Path of every page with code by name, which is what Sphinx calls the document.

    Hidden folders and those that start with an underscore are no part of a book.
    """
    found = {path.relative_to(book): path for path in sorted(book.rglob("*.md"))}
    return {
        below.with_suffix("").as_posix(): path
        for below, path in found.items()
        if not any(part.startswith((".", "_")) for part in below.parts) and has_code(path)
    }


def has_code(path: Path) -> bool:
    """Whether a file is a MyST-NB page with at least one code cell (seen without parsing it)."""
    text = path.read_text(encoding="utf-8", errors="replace")
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return "{code-cell}" in text and NOTEBOOK.search(front) is not None


def read_page(name: str, path: Path) -> Page:
    """Parse a page with MyST-NB's own reader, so that Sphinx sees the same cells.

    Raises PageError where the page cannot be read or declares a budget out of bounds.
    """
    from myst_nb.core.read import (  # type: ignore[import-untyped]
        read_myst_markdown_notebook as read,  # 0.3 s: not for a build with nothing to do
    )
    from myst_parser.config.main import MdParserConfig

    content = path.read_bytes()
    syntax = MdParserConfig(enable_extensions=BLOCK_SYNTAX)
    try:
        text = content.decode("utf-8")
        notebook = read(text, syntax, add_source_map=True, path=path)
    except Exception as error:
        raise PageError(0, None, str(error)) from error
    fences = notebook.metadata["source_map"]
    return Page(
        name,
        path,
        hashlib.sha256(content).hexdigest(),
        tuple(code_cells(notebook, text.splitlines(), fences)),
        tuple(expressions(notebook, fences)),
        *declared(notebook.metadata.get("execution", {})),
        notebook,
    )


def declared(options: Any) -> tuple[float, int]:
    """Budget in seconds of CPU and number of processes from the front matter's `execution`."""
    try:
        budget = float(options.get("budget", DEFAULT_BUDGET))
        processes = int(options.get("processes", 1))
    except (AttributeError, TypeError, ValueError) as error:
        message = f"execution {options!r} is not {{budget: SECONDS, processes: N}}"
        raise PageError(0, None, message) from error
    if not 0 < budget <= LARGEST_BUDGET:
        message = f"execution budget {budget:g} is not in (0, {LARGEST_BUDGET:g}] seconds"
        raise PageError(0, None, message)
    if processes < 1:
        raise PageError(0, None, f"execution processes {processes} is not at least 1")
    return budget, processes


def code_cells(notebook: NotebookNode, lines: list[str], fences: list[int]) -> Iterator[Cell]:
    """The code cells in order, each with the line on which its first line of code stands."""
    places = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for number, place in enumerate(places, start=1):
        cell = notebook.cells[place]
        line = first_line_of(cell.source.splitlines(), lines, fences[place])
        figure = bool({"figure", "image"} & cell.metadata.get("mystnb", {}).keys())
        yield Cell(place, number, cell.source, line, tuple(cell.metadata.get("tags", ())), figure)


def first_line_of(body: list[str], lines: list[str], start: int) -> int:
    """Line (from 1) at which a cell's body begins: options shift it, so it is looked for."""
    for first in range(start, len(lines) - len(body) + 1):
        if body and lines[first : first + len(body)] == body:
            return first + 1
    return start + 1


def expressions(notebook: NotebookNode, fences: list[int]) -> Iterator[Expression]:
    """Expressions of `{eval}` in prose and in strings of cell metadata (captions), in page order.

    One in a caption is evaluated after its cell, one in prose after the cells above it.
    """
    cells_before = 0
    for fence, cell in zip(fences, notebook.cells, strict=True):
        cells_before += cell.cell_type == "code"
        for text in strings(cell.metadata if cell.cell_type == "code" else cell.source):
            for match in EXPRESSION.finditer(text):
                line = fence + 1 + text.count("\n", 0, match.start())
                found = match["role"] or match["directive"]
                yield Expression(found.replace("\n", " "), cells_before, line)


def strings(value: Any) -> Iterator[str]:
    """Every string in nested values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from strings(child)


def loaded_files(page: Page) -> list[str]:
    """Files that cells take their code from (`:load:`)."""
    names = [cell.metadata["load"] for cell in page.notebook.cells if "load" in cell.metadata]
    return [os.path.abspath(page.path.parent / name) for name in names]


def name_page_in_kernelspec(notebook: NotebookNode, name: str) -> None:
    """Put the page's name where jupyter-cache hashes it.

    Its key covers the code cells and the kernelspec only: two pages with the same cells would share
    one record, and the last one executed would answer for both.
    """
    notebook.metadata.setdefault("kernelspec", dict(KERNELSPEC))["page"] = name


def code_key(page: Page) -> dict[str, str]:
    """Fingerprints of what the page asks to be executed, by part, so that a change can be named."""
    parts: dict[str, Any] = {
        f"cell {cell.number}": [cell.source, page.notebook.cells[cell.position].metadata]
        for cell in page.cells
    }
    parts["expressions"] = [[one.text, one.cells_before] for one in page.expressions]
    parts["kernelspec"] = page.notebook.metadata.get("kernelspec")
    return {
        part: hashlib.sha256(json.dumps(value).encode()).hexdigest()
        for part, value in parts.items()
    }
