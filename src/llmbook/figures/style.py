"""The house style: one colour per quantity in the whole book.

Legible in light, dark, print and to colour-blind readers.

Page: none of its own. The hues are those of Okabe and Ito's palette, which stay apart under every common
colour-vision deficiency; each also differs in lightness, so that a grey print keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    # parameters and what stands beside them in memory
    "parameters": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer": "#E69F00",
    "activations": "#009E73",
    "cache": "#CC79A7",
    "buffers": "#999999",
    # parts of a model
    "embedding": "#E69F00",
    "attention": "#0072B2",
    "feed_forward": "#009E73",
    "norm": "#999999",
    "output_head": "#CC79A7",
    # what a device does
    "forward": "#0072B2",
    "backward": "#E69F00",
    "weight": "#009E73",
    "idle": "#DDDDDD",
    "communication": "#D55E00",
    "compute": "#0072B2",
    # what a plot compares
    "ours": "#0072B2",
    "theirs": "#D55E00",
    "measured": "#009E73",
    "predicted": "#0072B2",
    "limit": "#B00020",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
INK = "#222222"


RULES = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
}


@contextmanager
def house() -> Iterator[None]:
    """Draw in the house style: no frame above and right, small type, transparent ground.

    Only our own settings are put back: `rc_context` would also put back "interactive", and notebooks that load
    their backend inside it then show nothing.
    """
    settings = cast("dict[str, Any]", plt.rcParams)
    before = {name: settings[name] for name in RULES}
    settings.update(RULES)
    try:
        yield
    finally:
        settings.update(before)


def axes(*, width: float = 7.0, height: float = 3.2) -> Axes:
    """One pair of axes of a size in inches that fits a page and a telephone."""
    with house():
        _, ax = plt.subplots(figsize=(width, height))
    return ax


def colour(quantity: str, position: int = 0) -> str:
    """The colour of a quantity; one without a colour of its own takes its place in the series."""
    return COLOURS.get(quantity, SERIES[position % len(SERIES)])
