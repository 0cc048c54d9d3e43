"""Curves between 0 and 1, each named where it passes a height: no legend to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from llmbook.figures.style import axes, colour, house


def crossings(
    xs: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    heights: Mapping[str, float] | None = None,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    height: float = 3.4,
) -> Axes:
    """Draw one line a name over the same xs, each named to the right of its first crossing.

    Args:
        xs: the abscissae, shared by the lines, rising.
        lines: name -> ordinates between 0 and 1.
        x_label: quantity and unit.
        y_label: quantity and unit.
        heights: name -> ordinate at whose crossing the name stands; one half where none is given.
        points: name of a line -> its measured (x, y), drawn as dots of the line's colour.
        height: inches.
    """
    ax = axes(height=height)
    halo = [withStroke(linewidth=3, foreground="white")]
    with house():
        for place, (name, ys) in enumerate(lines.items()):
            hue, level = colour(name, place), (heights or {}).get(name, 0.5)
            ax.plot(xs, ys, color=hue)
            for x, y in (points or {}).get(name, ()):
                ax.plot(x, y, "o", color=hue, markersize=5, clip_on=False)
            above = np.asarray(ys) > level
            crossing = int(np.argmax(above != above[0]))  # 0 where the line never passes the height
            at = (xs[crossing], ys[crossing])
            ax.annotate(
                name,
                at,
                xytext=(6, 0),
                textcoords="offset points",
                color=hue,
                va="center",
                fontsize=9,
                path_effects=halo,
            )
        ax.set_xlim(xs[0], xs[-1])
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
    return ax
