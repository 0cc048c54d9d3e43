"""Number lines one above another: every number that a format has is a tick."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from llmbook.figures.style import SERIES, axes, house


def number_lines(
    rows: Sequence[tuple[str, Sequence[float]]],
    *,
    x_label: str,
    powers: tuple[int, int, int] | None = None,
) -> Axes:
    """One line a row, the first on top, its name above its left end and a tick for each number.

    Args:
        rows: name, and its numbers.
        x_label: what the numbers are.
        powers: first, last and step of the powers of two to mark on a logarithmic axis, on which
            only positive numbers are drawn; a linear axis where none are given.
    """
    ax = axes(height=0.8 + 0.62 * len(rows))
    with house():
        for place, (name, numbers) in enumerate(rows):
            drawn = [number for number in numbers if number > 0 or not powers]
            hue = SERIES[place % len(SERIES)]
            ax.hlines(place, min(drawn), max(drawn), color=hue, linewidth=0.8)
            ax.vlines(drawn, place - 0.17, place + 0.17, color=hue, linewidth=1.0)
            ax.annotate(
                name, (0, place - 0.24), xycoords=("axes fraction", "data"), color=hue, fontsize=9
            )
        if powers:
            first, last, step = powers
            marked = range(first, last + 1, step)
            ax.set_xscale("log", base=2)
            ax.set_xlim(2.0**first, 2.0**last)
            ax.xaxis.set_major_locator(FixedLocator([2.0**power for power in marked]))
            ax.set_xticklabels([f"$2^{{{power}}}$" for power in marked])
        ax.set_ylim(len(rows) - 0.65, -0.75)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(x_label)
    return ax
