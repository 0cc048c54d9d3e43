"""Small matrices side by side: which key each query may see, or how much of it it takes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from llmbook.figures.style import axes, colour, house


def grids(
    panels: Sequence[tuple[str, Sequence[Sequence[float]]]],
    *,
    x_label: str,
    y_label: str,
    quantity: str = "attention",
    gap: float = 1.2,
) -> Axes:
    """One square grid a panel, its entries between 0 (empty) and 1 (full colour), row 0 on top.

    Args:
        panels: name, and its rows of entries.
        x_label: what the columns count, written under the first panel.
        y_label: what the rows count, written beside the first panel.
        quantity: whose colour the entries have.
        gap: space between panels, in cells.

    Raises:
        ValueError: if an entry is not between 0 and 1.
    """
    width = sum(len(rows[0]) for _, rows in panels) + gap * len(panels)
    tall = max(len(rows) for _, rows in panels)
    ax = axes(height=7.0 * (tall + 3) / width)
    red, green, blue = to_rgb(colour(quantity))
    left = 0.0
    with house():
        for name, rows in panels:
            ax.text(left + len(rows[0]) / 2, -0.4, name, ha="center", va="bottom", fontsize=10)
            for y, row in enumerate(rows):
                for x, entry in enumerate(row):
                    if not 0 <= entry <= 1:
                        raise ValueError(f"entry {entry} of {name!r} is not between 0 and 1")
                    ax.add_patch(
                        Rectangle(
                            (left + x, y),
                            1,
                            1,
                            facecolor=(red, green, blue, float(entry)),
                            edgecolor="#999999",
                            linewidth=0.6,
                        )
                    )
            left += len(rows[0]) + gap
        first = panels[0][1]
        ax.text(0, len(first) + 0.3, x_label, va="top", fontsize=9)
        ax.text(-0.3, len(first), y_label, ha="right", va="bottom", rotation=90, fontsize=9)
    ax.set_xlim(-gap, left)
    ax.set_ylim(tall + 1.6, -1.8)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax
