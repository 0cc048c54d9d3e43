"""Dials with one hand each: where a hand has been, and where it points now."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Circle, Wedge

from llmbook.figures.style import COLOURS, axes, colour, house

TURN = 2 * math.pi


def dials(
    rows: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    columns: Sequence[str],
    gap: float = 0.55,
) -> Axes:
    """Rows of dials, zero on top and clockwise; a hand outside its arc has the colour of a limit.

    Args:
        rows: label, and for each dial the angle up to which its hand has been and the angle of the
            hand, in radians from zero; an arc of a turn or more fills the dial.
        columns: what stands above each column.
        gap: space between dials, in radii.
    """
    step = 2 + gap
    left = 0.5 * max(len(label) for label, _ in rows) * 0.36 + 1  # room for the labels
    width, tall = left + step * len(columns), step * len(rows) + 0.6
    ax = axes(height=7.0 * tall / width)
    with house():
        for row, (label, angles) in enumerate(rows):
            y = -row * step
            ax.text(-1.4, y, label, ha="right", va="center", fontsize=9)
            for column, (been, points) in enumerate(angles):
                x, outside = column * step, been < points % TURN
                arc = Wedge((x, y), 1, 90 - math.degrees(min(been, TURN)), 90)
                arc.set(facecolor=colour("gradients"), alpha=0.45, edgecolor="none")
                ax.add_patch(arc)
                ax.add_patch(Circle((x, y), 1, fill=False, edgecolor="#777777", linewidth=0.7))
                tip = (x + 0.94 * math.sin(points), y + 0.94 * math.cos(points))
                hue = COLOURS["limit"] if outside else COLOURS["ours"]
                dash = "--" if outside else "-"
                ax.plot([x, tip[0]], [y, tip[1]], color=hue, linewidth=2.2, linestyle=dash)
        for column, name in enumerate(columns):
            ax.text(column * step, 1.2, name, ha="center", va="bottom", fontsize=9)
    ax.set_xlim(-left - 0.4, step * len(columns) - 1)
    ax.set_ylim(-step * len(rows) + 1.3, 2.0)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax
