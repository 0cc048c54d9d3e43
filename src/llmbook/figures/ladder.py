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
        thickness: part -> size of one number, from the top; the area of a strip is its bytes.
        num_ranks: the columns.
        gap: space between boxes as a share of their width.
    """
    size = sum(thickness.values())
    width = num_ranks * (1 + gap)
    ax = axes(height=0.5 + 0.72 * len(rows))
    with house():
        for row, (name, sharded, note) in enumerate(rows):
            top = row * 1.45
            ax.text(-0.2, top + 0.5, name, ha="right", va="center", fontsize=9)
            ax.text(width + 0.05, top + 0.5, note, va="center", fontsize=9)
            for rank in range(num_ranks):
                left, y = rank * (1 + gap), top
                for part, thick in thickness.items():
                    start, share = (rank / num_ranks, 1 / num_ranks) if part in sharded else (0, 1)
                    height = thick / size
                    filled = Rectangle((left + start, y), share, height, facecolor=colour(part))
                    frame = Rectangle((left, y), 1, height, fill=False, edgecolor="#888888")
                    frame.set_linewidth(0.5)
                    ax.add_patch(filled)
                    ax.add_patch(frame)
                    y += height
        for rank in range(num_ranks):
            ax.text(rank * (1 + gap) + 0.5, -0.15, str(rank), ha="center", va="bottom", fontsize=9)
        ax.text(-0.2, -0.15, "rank", ha="right", va="bottom", fontsize=9)
        for part, thick in thickness.items():  # the first box names the strips
            ax.text(0.5, below(thickness, part) / size, part, ha="center", va="center", fontsize=6.5, color="white")
    ax.set_xlim(-2.1, width + 3.6)
    ax.set_ylim(len(rows) * 1.45 - 0.3, -0.7)
    ax.axis("off")
    return ax


def below(thickness: Mapping[str, float], part: str) -> float:
    """The middle of a part's strip, measured from the top of its box."""
    names = list(thickness)
    return sum(thickness[name] for name in names[: names.index(part)]) + thickness[part] / 2
