"""Lines with their names written beside them: no legend to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from llmbook.figures.style import COLOURS, axes, colour, house


def curves(
    xs: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    logarithmic: str = "",
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    limit: tuple[float, str] | None = None,
    height: float = 3.4,
) -> Axes:
    """Draw one line a name over the same xs, each named at its right end.

    Args:
        xs: the abscissae, shared by the lines.
        lines: name -> ordinates; a name with a colour of its own in the house style keeps it.
        x_label: quantity and unit.
        y_label: quantity and unit.
        logarithmic: which axes are logarithmic: "", "x", "y" or "xy".
        points: name -> (xs, ys) of measurements, drawn as dots.
        limit: an ordinate and its name, drawn as a horizontal line.
        height: inches.
    """
    ax = axes(height=height)
    with house():
        for place, (name, ys) in enumerate(lines.items()):
            hue = colour(name, place)
            ax.plot(xs, ys, color=hue)
            ax.annotate(
                name,
                (xs[-1], ys[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                color=hue,
                va="center",
            )
        for place, (name, (dot_xs, dot_ys)) in enumerate((points or {}).items()):
            hue = colour(name, len(lines) + place)
            ax.plot(dot_xs, dot_ys, "o", color=hue, markersize=5, clip_on=False)
            ax.annotate(
                name,
                (dot_xs[-1], dot_ys[-1]),
                xytext=(7, -9),
                textcoords="offset points",
                color=hue,
            )
        for letter, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
            if letter in logarithmic:
                getattr(ax, f"set_{letter}scale")("log")
                axis.set_major_formatter(lambda value, _: f"{value:,g}")
        if limit:
            ax.axhline(limit[0], color=COLOURS["limit"], linestyle="--", linewidth=1.2)
            ax.text(xs[0], limit[0], limit[1], color=COLOURS["limit"], fontsize=8.5, va="bottom")
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        ax.margins(x=0.02)
    return ax
