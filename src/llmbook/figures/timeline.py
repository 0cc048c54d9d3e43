"""Time from left to right: what came out when and how large, and how long an idea waited for its use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from matplotlib.axes import Axes

from llmbook.figures.style import axes, colour, house

Release = tuple[str, date, float]  # a name, or "" for a dot without one; the day; the size


def year(day: date) -> float:
    """The day as a fraction of its year.

    >>> year(date(2020, 7, 1))
    2020.4972677595629
    """
    first, last = date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return day.year + (day - first) / (last - first)


def releases(groups: Mapping[str, Sequence[Release]], *, y_label: str) -> Axes:
    """A dot for each release over its day, sizes on a logarithmic axis, a marker and colour for each group.

    Names end above their dot, so that they stand over what came before and not over what came next.

    Args:
        groups: name of the group -> its releases.
        y_label: what the sizes are, and their unit.

    Raises:
        ValueError: if a size is not positive, which the logarithm does not allow.
    """
    for name, _, size in (release for group in groups.values() for release in group):
        if size <= 0:
            raise ValueError(f"the size {size} of {name!r} is not positive")
    ax = axes(height=3.9)
    with house():
        for place, (group, found) in enumerate(groups.items()):
            hue, marker = colour(group, place), "osD^v"[place % 5]
            ax.plot(
                [year(day) for _, day, _ in found], [size for *_, size in found], marker,
                color=hue, markersize=5, label=group,
            )  # fmt: skip
            for name, day, size in found:
                ax.annotate(
                    name, (year(day), size), xytext=(4, 6), textcoords="offset points",
                    color=hue, fontsize=8.5, ha="right",
                )  # fmt: skip
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        ax.set_ylabel(y_label)
        ax.margins(x=0.08, y=0.12)
        ax.legend(frameon=False, loc="lower right", fontsize=9)
    return ax


def spans(rows: Sequence[tuple[str, date, date, str]]) -> Axes:
    """A line a row from one day to another, the row's name before it and what it led to behind it.

    Args:
        rows: name, first day, second day, and what is written at the second, from the top.

    Raises:
        ValueError: if a row ends before it begins.
    """
    for name, first, second, _ in rows:
        if second < first:
            raise ValueError(f"{name!r} ends on {second}, before it begins on {first}")
    ax = axes(height=0.6 + 0.36 * len(rows))
    with house():
        for row, (name, first, second, note) in enumerate(rows):
            ends = [year(first), year(second)]
            ax.plot(ends, [row, row], color=colour("idle"), linewidth=3, zorder=1)
            ax.plot(ends[0], row, "o", color=colour("theirs"), markersize=6, zorder=2)
            ax.plot(ends[1], row, "s", color=colour("ours"), markersize=6, zorder=2)
            ax.annotate(
                name, (ends[0], row), xytext=(-7, 0), textcoords="offset points",
                ha="right", va="center", fontsize=9,
            )  # fmt: skip
            ax.annotate(
                note, (ends[1], row), xytext=(7, 0), textcoords="offset points",
                va="center", fontsize=9, color=colour("ours"),
            )  # fmt: skip
        first_year = min(year(first) for _, first, _, _ in rows)
        last_year = max(year(second) for _, _, second, _ in rows)
        room = (last_year - first_year) * 0.35  # for the names on both sides
        ax.set_xlim(first_year - room, last_year + room)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        ax.yaxis.set_visible(False)
        ax.spines["left"].set_visible(False)
    return ax
