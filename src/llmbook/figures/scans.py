"""A parallel scan as a drawing: a column an element, a row a round, a line for each pair joined."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from llmbook.figures.style import INK, axes, colour, house


def scans(length: int, rounds: Sequence[Sequence[tuple[int, int]]]) -> Axes:
    """What each element covers after each round, a joined element filled.

    Args:
        length: number of elements.
        rounds: in each round the pairs (left, right) that are joined, the result at right.

    Raises:
        ValueError: if a pair does not join two neighbouring stretches.
    """
    first = list(range(length))  # where the stretch that ends at each element begins
    ax = axes(height=0.9 + 0.72 * len(rounds))
    hue = colour("compute")
    with house():
        for y, pairs in enumerate([(), *rounds]):
            joined = {right: left for left, right in pairs}
            for x in range(length):
                if x in joined:
                    left = joined[x]
                    if first[x] != left + 1:
                        raise ValueError(f"pair ({left}, {x}) leaves a gap before {first[x]}")
                    ax.plot([left, x], [y - 0.75, y - 0.25], color=hue, linewidth=1.4)
                if y:
                    ax.plot([x, x], [y - 0.75, y - 0.25], color="#999999", linewidth=0.8)
            for left, right in pairs:
                first[right] = first[left]
            for x in range(length):
                label = f"{x}" if first[x] == x else f"{first[x]}–{x}"
                box = {"boxstyle": "round,pad=0.3", "facecolor": hue if x in joined else "white"}
                shade = "white" if x in joined else INK
                box["edgecolor"] = hue if first[x] == 0 else "#999999"
                ax.text(x, y, label, ha="center", va="center", color=shade, fontsize=11, bbox=box)
            ax.text(-0.75, y, f"{y}", ha="right", va="center", fontsize=10)
        ax.text(-0.75, -0.55, "round", ha="right", va="center", fontsize=10)
    ax.set_xlim(-1.4, length - 0.4)
    ax.set_ylim(len(rounds) + 0.4, -0.75)
    ax.axis("off")
    return ax
