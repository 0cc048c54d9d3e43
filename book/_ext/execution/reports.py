"""What a run says: progress while it works, and its end in a few lines.

Left out: anything that decides what runs.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """One line that is rewritten on a terminal; a plain line a page elsewhere."""

    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def show(self, running: list[tuple[str, float]]) -> None:
        """Show what runs, the slowest first, with its seconds so far."""
        if sys.stdout.isatty():
            slowest = sorted(running, key=lambda one: -one[1])
            pages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slowest)
            self._rewrite(f"{self._state()}; slowest running: {pages}" if pages else "")

    def finished(self, name: str, result: str, *, failed: bool = False) -> None:
        """Count a page; a failure always has its line, a success where there is no terminal."""
        self.done += 1
        if failed or not sys.stdout.isatty():
            self.show([])
            print(f"{self._state()}: {name}: {result}", flush=True)

    def _state(self) -> str:
        seconds = time.monotonic() - self.began
        return f"{self.done} done, {self.total - self.done} left, {seconds:.0f} s"

    def _rewrite(self, text: str) -> None:
        width = os.get_terminal_size(sys.stdout.fileno()).columns
        print("\r\x1b[K" + text[: width - 1], end="", flush=True)


def busy(seconds: dict[str, float]) -> bool:
    """Whether a page stood in line for a processor longer than it had one."""
    in_line = seconds["wall"] - seconds["cpu"] - seconds["waited"]
    return in_line > max(1.0, seconds["cpu"])


def report(summary: dict[str, Any], failures: list[tuple[str, str]]) -> None:
    """Say in a line what was done; before it what failed in full, after it each failure's place."""
    for place, details in failures:
        if details:
            print(f"\n{place}\n{details.rstrip()}\n")
    executed = {name: page for name, page in summary["per_page"].items() if page["executed"]}
    for name, page in executed.items():
        if page["over_budget"]:
            took, budget = page["cpu_seconds"], page["budget"]
            print(f"execution: {name} took {took:.0f} s of CPU, within the slack over {budget:g} s")
    if starved := [name for name, page in executed.items() if page["busy"]]:
        print(f"execution: a busy machine; these pages stood in line: {', '.join(starved)}")
    print(
        f"execution: {summary['executed']} pages executed, {summary['reused']} reused, "
        f"{len(failures)} failed, {summary['stage_seconds']:.1f} s"
    )
    for place, _ in failures:
        print(place)
    sys.stdout.flush()
