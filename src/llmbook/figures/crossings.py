"""Curves between 0 and 1, each named where it passes a height: no legend to match."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from llmbook.figures.style import axes, colour, house


def crossings(
    xs: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    heights: Mapping[str, float] | None = None,
    left: Collection[str] = (),
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    height: float = 3.4,
) -> Axes:
    """Draw one line a name over the same xs, each named beside its first crossing of a height.

    Args:
        xs: the abscissae, shared by the lines, rising.
        lines: name -> ordinates between 0 and 1.
        x_label: quantity and unit.
        y_label: quantity and unit.
        heights: name -> ordinate at whose crossing the name stands; one half where none is given.
        left: names that stand to the left of their lines, not to the right.
        points: name of a line -> its measured (x, y), drawn as dots of the line's colour.
        height: inches.
    """
    ax = axes(height=height)
    with house():
        for place, (name, ys) in enumerate(lines.items()):
            hue, level = colour(name, place), (heights or {}).get(name, 0.5)
            ax.plot(xs, ys, color=hue)
            for x, y in (points or {}).get(name, ()):
                ax.plot(x, y, "o", color=hue, markersize=5, clip_on=False)
            above = np.asarray(ys) > level
            crossing = int(np.argmax(above != above[0]))  # 0 where the line keeps to one side
            beside = (-7, "right") if name in left else (7, "left")
            offset, side = beside if crossing else (-2, "right")
            ax.annotate(
                name,
                (xs[crossing or -1], ys[crossing or -1]),
                xytext=(offset, 0 if crossing else -10),
                textcoords="offset points",
                ha=side,
                va="center",
                color=hue,
                fontsize=9,
            )
        ax.set_xlim(xs[0], xs[-1])
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
    return ax
