"""A ladder of schemes: a row a scheme, a column a rank, areas as large as what the rank holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from llmbook.figures.style import axes, colour, house


def ladder(
    rows: Sequence[tuple[str, Collection[str], str]],
    *,
    thickness: Mapping[str, float],
    num_ranks: int,
    gap: float = 0.25,
) -> Axes:
    """One box a rank in each row: a strip for each part, filled where the rank holds it.

    Args:
        rows: name of the scheme, the parts that it shards, and what to print at the row's end.
        thickness: part -> bytes of one number, from the top; the area of a strip is its bytes.
        num_ranks: the columns.
        gap: space between boxes as a share of their width.
    """
    size = sum(thickness.values())
    width, step = num_ranks * (1 + gap) - gap, 1.4  # of all boxes; from row to row
    ax = axes(height=0.75 + 0.85 * len(rows))
    with house():
        for row, (name, sharded, note) in enumerate(rows):
            ax.text(-0.2, row * step + 0.5, name, ha="right", va="center", fontsize=9)
            ax.text(width + 0.2, row * step + 0.5, note, va="center", fontsize=9)
            for rank in range(num_ranks):
                left, top = rank * (1 + gap), row * step
                for part, thick in thickness.items():
                    start, share = (rank / num_ranks, 1 / num_ranks) if part in sharded else (0, 1)
                    at = (left + start, top)
                    ax.add_patch(Rectangle(at, share, thick / size, facecolor=colour(part)))
                    frame = Rectangle((left, top), 1, thick / size, fill=False, linewidth=0.5)
                    frame.set_edgecolor("#888888")
                    ax.add_patch(frame)
                    top += thick / size
        for rank in range(num_ranks):
            ax.text(rank * (1 + gap) + 0.5, -0.12, str(rank), ha="center", fontsize=9)
        ax.text(-0.2, -0.12, "rank", ha="right", fontsize=9)
        for place, (part, thick) in enumerate(thickness.items()):  # the key, in the parts' colours
            at = (place * width / len(thickness), len(rows) * step + 0.05)
            ax.text(*at, f"{part}, {thick:g}", color=colour(part), fontsize=9, weight="bold")
    ax.set_xlim(-1.7, width + 4.2)
    ax.set_ylim(len(rows) * step + 0.2, -0.5)
    ax.axis("off")
    return ax
