"""Repeated measurements on axes that stand already: a dot for the middle, a line for the range."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from llmbook.figures.style import colour, house


def spread(
    ax: Axes,
    xs: Sequence[float],
    lows: Sequence[float],
    middles: Sequence[float],
    highs: Sequence[float],
    *,
    quantity: str = "measured",
    named_at: int | None = None,
    offset: tuple[float, float] = (7, -9),
) -> None:
    """Draw each measurement as a dot and its range as a thin line, in the quantity's colour.

    Args:
        ax: where to draw, for instance what `curves` returned.
        xs: the abscissae.
        lows: the least that was measured at each.
        middles: the mean or median.
        highs: the most.
        quantity: gives the colour, and the name that is written.
        named_at: the place in `xs` of the dot beside which the name is written, if at all.
        offset: from that dot to the beginning of the name, in points.
    """
    hue = colour(quantity)
    with house():
        ax.vlines(xs, lows, highs, color=hue, linewidth=0.9)
        ax.plot(xs, middles, "o", color=hue, markersize=5, clip_on=False)
        if named_at is not None:
            place = (xs[named_at], middles[named_at])
            ax.annotate(quantity, place, xytext=offset, textcoords="offset points", color=hue)
