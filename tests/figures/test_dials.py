"""Hands point where they should, and those outside their arc are marked."""

import math

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import Wedge

from llmbook.figures.dials import dials
from llmbook.figures.style import COLOURS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(*angles):
    return dials([("row", angles)], columns=[str(i) for i, _ in enumerate(angles)])


def test_a_hand_points_clockwise_from_the_top():
    hand = drawn((7.0, math.pi / 2)).lines[0]
    (x0, x1), (y0, y1) = hand.get_data()
    assert x1 - x0 == pytest.approx(0.94)
    assert y1 == pytest.approx(y0)


def test_an_arc_begins_at_the_top_and_ends_where_the_hand_has_been():
    wedge = next(patch for patch in drawn((math.pi, 1.0)).patches if isinstance(patch, Wedge))
    assert (wedge.theta1, wedge.theta2) == (-90, 90)


def test_only_a_hand_past_its_arc_is_marked_and_none_on_a_full_dial():
    colours = [line.get_color() for line in drawn((1.0, 0.9), (1.0, 1.1), (6.3, 99.0)).lines]
    assert colours == [COLOURS["ours"], COLOURS["limit"], COLOURS["ours"]]


def test_a_hand_that_came_round_into_its_arc_is_not_marked():
    assert drawn((1.0, 2 * math.pi + 0.5)).lines[0].get_color() == COLOURS["ours"]
    assert drawn((1.0, 2 * math.pi + 1.5)).lines[0].get_color() == COLOURS["limit"]


def test_marks_do_not_rest_on_colour_alone():
    assert [line.get_linestyle() for line in drawn((1.0, 0.9), (1.0, 1.1)).lines] == ["-", "--"]
