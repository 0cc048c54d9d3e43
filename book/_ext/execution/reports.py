"""What a run says: failures with page and line, progress, and the summary that others read.

Left out: anything that decides what runs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from execution.pages import Page, shown_path

if TYPE_CHECKING:
    from execution.cache import Record


@dataclass(frozen=True)
class Failure:
    """A page that did not pass: one line that names the place, and the story behind it."""

    page: str
    summary: str
    details: str = ""


@dataclass(eq=False)
class CellError(Exception):
    """Why a page failed: the cell (its number), the line in it if known, and the whole story."""

    cell: int
    line: int | None
    message: str
    details: str = ""


def failure_at(page: Page, error: CellError) -> Failure:
    """A failure as `page:line: cell N, line K: message`; cell 0 is the page before its cells."""
    place, line = "", 1
    if error.cell:
        line = page.cells[error.cell - 1].line + (error.line or 1) - 1
        place = f"cell {error.cell}, line {error.line}: " if error.line else f"cell {error.cell}: "
    summary = f"{shown_path(page.path)}:{line}: {place}{error.message}"
    return Failure(page.name, summary, error.details)


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

    def finished(self, name: str, *, seconds: dict[str, float], failed: bool) -> None:
        """Count a page; a failure always has its line, a success where there is no terminal."""
        self.done += 1
        result = f"{seconds.get('wall', 0):.1f} s, {seconds.get('cpu', 0):.1f} s of CPU"
        if failed or not self.out.isatty():
            self.end()
            result = "failed" if failed else result
            print(f"[{self.done}/{self.total}] {name}: {result}", file=self.out, flush=True)

    def end(self) -> None:
        """Leave the terminal's line clean."""
        if self.out.isatty():
            self._rewrite("")

    def _rewrite(self, text: str) -> None:
        width = os.get_terminal_size(self.out.fileno()).columns
        print("\r\x1b[K" + text[: width - 1], end="", file=self.out, flush=True)


def page_summary(record: Record, *, executed: bool) -> dict[str, Any]:
    """What the summary says about one page."""
    return {
        "cells": record.cells,
        "cpu_seconds": record.seconds["cpu"],
        "wall_seconds": record.seconds["wall"],
        "budget": record.seconds["budget"],
        "over_budget": record.seconds["cpu"] > record.seconds["budget"],
        "executed": executed,
        "when": record.stamp["when"],
        "reasons": list(record.reasons),
    }


def report(summary: dict[str, Any], failures: list[Failure]) -> None:
    """Say in a line what was done; before it what failed in full, after it each failure's place."""
    for failure in failures:
        if failure.details:
            print(f"\n{failure.summary}\n{shortened(failure.details)}\n")
    for name, page in summary["per_page"].items():
        if page["over_budget"] and page["executed"]:
            took, budget = page["cpu_seconds"], page["budget"]
            print(f"execution: {name} took {took:.0f} s of CPU, within the slack over {budget:g} s")
    executed = [page for page in summary["per_page"].values() if page["executed"]]
    wall, cpu = (sum(page[f"{kind}_seconds"] for page in executed) for kind in ("wall", "cpu"))
    if wall > 2 * cpu + 5:
        print(f"execution: a busy machine, or pages that wait: {wall:.0f} s for {cpu:.0f} s of CPU")
    print(
        f"execution: {summary['executed']} pages executed, {summary['reused']} reused, "
        f"{len(failures)} failed, {summary['stage_seconds']:.1f} s"
    )
    for failure in failures:
        print(failure.summary)
    sys.stdout.flush()


def shortened(details: str, *, head: int = 12, tail: int = 24) -> str:
    """A traceback without its middle, which is most often a library's."""
    lines = details.rstrip().splitlines()
    if len(lines) > head + tail + 1:
        lines = [*lines[:head], f"  ... {len(lines) - head - tail} lines ...", *lines[-tail:]]
    return "\n".join(lines)
