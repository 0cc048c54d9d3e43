"""Read a page: its code cells, the expressions in its prose, and what its front matter asks for.

Left out: everything that Sphinx does with the page afterwards.
"""

from __future__ import annotations

import fnmatch
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
BLOCK_SYNTAX = ("amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist")

NOTEBOOK = re.compile(r"^\s*(file_format:\s*mystnb|format_name:\s*myst)\s*$", re.MULTILINE)
ROLE = re.compile(r"\{eval\}(`+)(.+?)\1", re.DOTALL)
DIRECTIVE = re.compile(
    r"^[ \t>]*(?:`{3,}|:{3,}|~{3,})\{eval(?::figure)?\}[ \t]+(\S.*?)[ \t]*$", re.MULTILINE
)


def shown_path(path: Path) -> str:
    """A path as seen from where the command was given."""
    return os.path.relpath(path)


class PageError(Exception):
    """A page whose front matter or cells cannot be read; the text names file and line."""


@dataclass(frozen=True)
class Cell:
    """One code cell: its place in the notebook, its source and where that begins on the page."""

    position: int
    number: int
    source: str
    line: int
    tags: tuple[str, ...]
    shows_figure: bool

    @property
    def may_raise(self) -> bool:
        """Whether the author expects an exception."""
        return "raises-exception" in self.tags


@dataclass(frozen=True)
class Expression:
    """An expression in prose or in a caption, and the number of code cells that precede it."""

    text: str
    cells_before: int
    line: int


@dataclass(frozen=True)
class Page:
    """What the stage needs of one page."""

    name: str
    path: Path
    cells: tuple[Cell, ...]
    expressions: tuple[Expression, ...]
    budget: float
    processes: int
    loads: tuple[Path, ...]
    notebook: NotebookNode


def page_paths(book: Path, *, exclude: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Name and path of every page with code, in order; the name is what Sphinx calls the document.

    Hidden folders and those that start with an underscore are no part of a book.
    """
    for path in sorted(book.rglob("*.md")):
        parts = path.relative_to(book).parts
        name = "/".join(parts)[: -len(".md")]
        hidden = any(part.startswith((".", "_")) for part in parts)
        if (
            not hidden
            and not any(fnmatch.fnmatch(name, pattern) for pattern in exclude)
            and has_code(path)
        ):
            yield name, path


def has_code(path: Path) -> bool:
    """Whether a file is a MyST-NB page with at least one code cell (seen without parsing it)."""
    text = path.read_text(encoding="utf-8", errors="replace")
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return "{code-cell}" in text and NOTEBOOK.search(front) is not None


def read_page(name: str, path: Path, content: bytes) -> Page:
    """Parse a page with MyST-NB's own reader, so that Sphinx sees the same cells.

    Raises PageError where the page cannot be read or declares a budget out of bounds.
    """
    from myst_nb.core.read import (  # type: ignore[import-untyped]
        read_myst_markdown_notebook,
    )  # 0.3 s: not for a build with nothing to do
    from myst_parser.config.main import MdParserConfig

    try:
        text = content.decode("utf-8")
        notebook = read_myst_markdown_notebook(
            text,
            MdParserConfig(enable_extensions=set(BLOCK_SYNTAX)),
            add_source_map=True,
            path=path,
        )
    except Exception as error:
        raise PageError(f"{shown_path(path)}:1: {error}") from error
    lines = text.splitlines()
    fences = notebook.metadata["source_map"]
    budget, processes = declared(notebook.metadata.get("execution", {}), path)
    return Page(
        name=name,
        path=path,
        cells=tuple(code_cells(notebook, lines, fences)),
        expressions=tuple(expressions(notebook, fences)),
        budget=budget,
        processes=processes,
        loads=tuple(
            (path.parent / cell.metadata["load"]).resolve()
            for cell in notebook.cells
            if "load" in cell.metadata
        ),
        notebook=notebook,
    )


def declared(options: Any, path: Path) -> tuple[float, int]:
    """Budget in seconds of CPU and number of processes from the front matter's `execution`."""
    here = f"{shown_path(path)}:1: execution"
    try:
        budget = float(options.get("budget", DEFAULT_BUDGET))
        processes = int(options.get("processes", 1))
    except (AttributeError, TypeError, ValueError) as error:
        raise PageError(f"{here} {options!r} is not {{budget: SECONDS, processes: N}}") from error
    if not 0 < budget <= LARGEST_BUDGET:
        raise PageError(f"{here} budget {budget:g} is not in (0, {LARGEST_BUDGET:g}] seconds")
    if processes < 1:
        raise PageError(f"{here} processes {processes} is not at least 1")
    return budget, processes


def code_cells(notebook: NotebookNode, lines: list[str], fences: list[int]) -> Iterator[Cell]:
    """The code cells in order, each with the line on which its first line of code stands."""
    number = 0
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            number += 1
            display = cell.metadata.get("mystnb", {})
            yield Cell(
                position=position,
                number=number,
                source=cell.source,
                line=first_line_of(cell.source.splitlines(), lines, fences[position]),
                tags=tuple(cell.metadata.get("tags", ())),
                shows_figure="figure" in display or "image" in display,
            )


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
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cells_before += 1
            texts = list(strings(cell.metadata))
        else:
            texts = [cell.source] if cell.cell_type == "markdown" else []
        for text in texts:
            for match in [*ROLE.finditer(text), *DIRECTIVE.finditer(text)]:
                found = match.group(match.lastindex or 0).replace("\n", " ")
                line = fences[position] + 1 + text.count("\n", 0, match.start())
                yield Expression(text=found, cells_before=cells_before, line=line)


def strings(value: Any) -> Iterator[str]:
    """Every string in nested metadata."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from strings(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from strings(child)


def name_page_in_kernelspec(notebook: NotebookNode, name: str) -> None:
    """Put the page's name where jupyter-cache hashes it.

    Its key covers the code cells and the kernelspec only: two pages with the same cells would share
    one record, and the last one executed would answer for both.
    """
    kernelspec = notebook.metadata.setdefault("kernelspec", dict(KERNELSPEC))
    kernelspec["page"] = name


def code_key(page: Page) -> dict[str, str]:
    """Fingerprints of what the page asks to be executed, by part, so that a change can be named."""
    parts = {
        f"cell {cell.number}": [cell.source, page.notebook.cells[cell.position].metadata]
        for cell in page.cells
    }
    parts["expressions"] = [[one.text, one.cells_before] for one in page.expressions]
    parts["kernelspec"] = [page.notebook.metadata.get("kernelspec")]
    return {
        part: hashlib.sha256(json.dumps(value).encode()).hexdigest()
        for part, value in parts.items()
    }
