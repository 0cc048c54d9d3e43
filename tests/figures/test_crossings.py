"""Lines are named where they pass a height."""

import matplotlib.pyplot as plt
import pytest

from llmbook.figures.crossings import crossings

XS = [0.0, 1.0, 2.0, 3.0]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(**options):
    lines = {"early": [0.0, 0.9, 1.0, 1.0], "late": [0.0, 0.0, 0.3, 0.8]}
    return crossings(XS, lines, x_label="x", y_label="y", **options)


def test_each_name_stands_at_the_first_point_past_its_height():
    at = {text.get_text(): text.xy for text in drawn(heights={"late": 0.2}).texts}
    assert at == {"early": (1.0, 0.9), "late": (2.0, 0.3)}


def test_a_name_stands_on_the_side_that_was_asked_for():
    sides = {
        text.get_text(): text.get_horizontalalignment() for text in drawn(left=("late",)).texts
    }
    assert sides == {"early": "left", "late": "right"}


def test_a_line_that_keeps_to_one_side_is_named_at_its_end():
    ax = crossings(XS, {"flat": [1.0, 1.0, 1.0, 1.0]}, x_label="x", y_label="y")
    assert ax.texts[0].xy == (3.0, 1.0)


def test_points_have_the_colour_of_their_line():
    ax = drawn(points={"late": [(2.0, 0.35), (3.0, 0.75)]})
    line, *dots = ax.lines[1:]
    assert [dot.get_marker() for dot in dots] == ["o", "o"]
    assert {dot.get_color() for dot in dots} == {line.get_color()}
