"""What a run says: failures with page and line, progress, and the summary that others read.

Left out: anything that decides what runs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any, TextIO

from execution.pages import Page, shown_path


@dataclass(frozen=True)
class Failure:
    """A page that did not pass: one line that names the place, and the story behind it."""

    page: str
    summary: str
    details: str = ""


@dataclass(eq=False)
class CellFailure(Exception):
    """Why a page failed: the cell (its number), the line in it if known, and the whole story."""

    cell: int
    line: int | None
    message: str
    details: str = ""


def failure_at(page: Page, cell_number: int, cell_line: int | None, message: str, details: str = "") -> Failure:
    """A failure of one cell as `page:line: cell N, line K: message`; cell 0 is the page before its cells."""
    place, line = "", 1
    if cell_number:
        line = page.cells[cell_number - 1].line + (cell_line or 1) - 1
        place = f"cell {cell_number}, line {cell_line}: " if cell_line else f"cell {cell_number}: "
    return Failure(page.name, f"{shown_path(page.path)}:{line}: {place}{message}", details)


@dataclass
class Progress:
    """One line that is rewritten on a terminal; a plain line a page elsewhere."""

    total: int
    out: TextIO = field(default_factory=lambda: sys.stdout)
    done: int = 0

    def show(self, running: list[tuple[str, float]]) -> None:
        """Show what runs, the slowest first, with its seconds so far."""
        if self.out.isatty():
            slowest = sorted(running, key=lambda one: -one[1])
            pages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slowest)
            self._rewrite(f"[{self.done}/{self.total}] {pages}")

    def finished(self, name: str, *, seconds: dict[str, float], failure: str | None) -> None:
        """Count a page; say its seconds, or why it failed."""
        self.done += 1
        if failure is not None:
            self._line(f"[{self.done}/{self.total}] {name}: failed")
        elif not self.out.isatty():
            self._line(
                f"[{self.done}/{self.total}] {name}: {seconds['wall']:.1f} s, {seconds['cpu']:.1f} s of CPU"
            )

    def end(self) -> None:
        """Leave the terminal's line clean."""
        if self.out.isatty():
            self._rewrite("")

    def _line(self, text: str) -> None:
        self._rewrite("") if self.out.isatty() else None
        print(text, file=self.out, flush=True)

    def _rewrite(self, text: str) -> None:
        width = os.get_terminal_size(self.out.fileno()).columns
        print("\r\x1b[K" + text[: width - 1], end="", file=self.out, flush=True)


def page_summary(record: Any, *, executed: bool) -> dict[str, Any]:
    """What the summary says about one page."""
    over = record.seconds["cpu"] > record.seconds["budget"]
    return {
        "cells": record.cells,
        "cpu_seconds": record.seconds["cpu"],
        "wall_seconds": record.seconds["wall"],
        "budget": record.seconds["budget"],
        "over_budget": over,
        "executed": executed,
        "when": record.stamp["when"],
        "reasons": list(record.reasons),
    }
