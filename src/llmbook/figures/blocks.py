"""Matrices drawn to scale: one number, one equal patch of area."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from llmbook.figures.style import axes, colour, house


def matrices(
    rows: Sequence[tuple[str, Sequence[tuple[str, int, int, str]]]], *, gap: float = 0.06
) -> Axes:
    """Rows of rectangles, each as high and wide as its matrix, in one scale for the whole drawing.

    Args:
        rows: label of the row, and for each matrix its name, rows, columns and the part that gives its colour.
        gap: space between rectangles as a share of the largest side.
    """
    space = gap * max(max(height, width) for _, row in rows for _, height, width, _ in row)
    heights = [max(height for _, height, _, _ in row) for _, row in rows]
    widths = [sum(width for _, _, width, _ in row) + space * (len(row) - 1) for _, row in rows]
    ax = axes(height=7.0 * (sum(heights) + 2.2 * space * len(rows)) / (max(widths) * 1.02))
    with house():
        top = 0.0
        for (label, row), height in zip(rows, heights, strict=True):
            ax.text(0, top - 0.25 * space, label, fontsize=9.5, va="bottom")
            left = 0.0
            for name, h, w, part in row:
                ax.add_patch(
                    Rectangle((left, top), w, h, facecolor=colour(part), edgecolor="white")
                )
                ax.text(
                    left + w / 2,
                    top + h / 2,
                    name,
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                )
                left += w + space
            top += height + 2.2 * space
    ax.set_xlim(0, max(widths) * 1.02)
    ax.set_ylim(top - space, -1.6 * space)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax
