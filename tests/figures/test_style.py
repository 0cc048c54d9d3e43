"""The palette stays apart in grey and for colour-blind readers; drawing leaves no settings behind."""

import itertools

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from llmbook.figures.style import COLOURS, RULES, SERIES, axes, colour, house

# Machado et al. (2009), full severity: what a deuteranope and a protanope see of linear RGB.
BLINDNESS = {
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    ),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
}


def linear(value):
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def seen(name, matrix):
    red, green, blue = (linear(part) for part in to_rgb(name))
    return [row[0] * red + row[1] * green + row[2] * blue for row in matrix]


@pytest.mark.parametrize("matrix", BLINDNESS.values(), ids=BLINDNESS)
@pytest.mark.parametrize(
    "parts",
    [
        ("parameters", "gradients", "optimizer", "activations"),
        ("attention", "feed_forward", "embedding", "output_head"),
    ],
)
def test_neighbours_in_a_bar_stay_apart_for_colour_blind_readers(matrix, parts):
    for one, other in itertools.combinations(parts, 2):
        distance = (
            sum(
                (a - b) ** 2
                for a, b in zip(
                    seen(COLOURS[one], matrix), seen(COLOURS[other], matrix), strict=True
                )
            )
            ** 0.5
        )
        assert distance > 0.1, (one, other)


def test_a_quantity_keeps_its_colour_and_others_take_the_series():
    assert colour("optimizer") == COLOURS["optimizer"]
    assert [colour("something else", place) for place in range(len(SERIES))] == list(SERIES)


def test_the_house_style_leaves_no_settings_behind():
    before = {name: plt.rcParams[name] for name in RULES}
    with house():
        assert plt.rcParams["font.size"] == RULES["font.size"]
    assert {name: plt.rcParams[name] for name in RULES} == before


def test_the_ground_is_transparent():
    ax = axes()
    assert ax.figure.get_facecolor() == (1.0, 1.0, 1.0, 0.0) or ax.figure.get_facecolor()[3] == 0
    plt.close(ax.figure)
