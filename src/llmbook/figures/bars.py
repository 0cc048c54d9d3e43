"""Horizontal bars, plain or stacked, with numbers on the marks and a limit drawn as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from llmbook.figures.style import COLOURS, axes, colour, house


def stacked(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    *,
    x_label: str,
    totals: Sequence[str] = (),
    limit: tuple[float, str] | None = None,
    smallest_label: float = 0.09,
) -> Axes:
    """One bar a row, its parts in the colours of their quantities, the first bar on top.

    Args:
        rows: label of the bar, and value of each part in the order of drawing.
        x_label: the quantity and its unit.
        totals: what to print at the end of each bar.
        limit: a value and its name, drawn as a vertical line.
        smallest_label: parts below this share of the longest bar carry no name.
    """
    ax = axes(height=0.9 + 0.42 * len(rows))
    longest = max(sum(parts.values()) for _, parts in rows)
    seen: dict[str, int] = {}
    with house():
        for y, (_, parts) in enumerate(rows):
            left = 0.0
            for name, value in parts.items():
                place = seen.setdefault(name, len(seen))
                ax.barh(
                    y,
                    value,
                    left=left,
                    height=0.62,
                    color=colour(name, place),
                    edgecolor="white",
                    linewidth=0.6,
                )
                if value > smallest_label * longest:
                    label = name.replace("_", " ")
                    ax.text(
                        left + value / 2,
                        y,
                        label,
                        ha="center",
                        va="center",
                        color="white",
                        fontsize=8,
                    )
                left += value
            if totals:
                ax.text(left + 0.01 * longest, y, totals[y], va="center", fontsize=8.5)
        ax.set_yticks(range(len(rows)), [label for label, _ in rows])
        ax.invert_yaxis()
        ax.set_xlim(0, longest * (1.22 if totals else 1.03))
        ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 1.001 * longest])
        ax.set_xlabel(x_label)
        if limit:
            ax.axvline(limit[0], color=COLOURS["limit"], linestyle="--", linewidth=1.2)
            ax.text(
                limit[0], -0.75, f" {limit[1]}", color=COLOURS["limit"], fontsize=8.5, va="bottom"
            )
    return ax
