"""Small grids of equal cells, one colour a cell: what agrees, what is busy, who holds what."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from llmbook.figures.style import axes, colour, house


def cells(rows: Sequence[tuple[str, Sequence[Sequence[str]]]], *, gap: float = 0.7) -> Axes:
    """Rows of columns of cells, the label above each row.

    Args:
        rows: label, and its columns, each the names that give its cells their colours, top first.
        gap: space between columns, in cells.
    """
    width = max(len(columns) * (1 + gap) for _, columns in rows)
    heights = [max(len(column) for column in columns) for _, columns in rows]
    ax = axes(height=7.0 * (sum(heights) * 0.55 + 2.2 * len(rows)) / width)
    with house():
        top = 0.0
        for (label, columns), cells_high in zip(rows, heights, strict=True):
            ax.text(0, top - 0.3, label, fontsize=9.5, va="bottom")
            for place, column in enumerate(columns):
                for row, name in enumerate(column):
                    at = (place * (1 + gap), top + row * 0.55)
                    ax.add_patch(
                        Rectangle(
                            at, 1, 0.5, facecolor=colour(name), edgecolor="#777777", linewidth=0.5
                        )
                    )
            top += cells_high * 0.55 + 2.2
    ax.set_xlim(-0.05, width)
    ax.set_ylim(top - 2.0, -1.8)
    ax.axis("off")
    return ax
