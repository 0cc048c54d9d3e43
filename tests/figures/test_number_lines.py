"""Every number is a tick at its place, in rows from the top."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.collections import LineCollection

from llmbook.figures.number_lines import number_lines


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def ticks(ax):
    """The abscissae of the vertical strokes, row by row."""
    rows = [[line[:, 0].tolist() for line in c.get_segments()] for c in ax.collections]
    assert all(isinstance(c, LineCollection) for c in ax.collections)
    return [[left for left, right in row] for row in rows if all(a == b for a, b in row)]


def test_each_number_is_a_tick_at_its_place():
    ax = number_lines([("a", [-1.0, 0.0, 0.5]), ("b", [0.25, 2.0])], x_label="value")
    assert ticks(ax) == [[-1.0, 0.0, 0.5], [0.25, 2.0]]
    assert ax.get_xscale() == "linear"


def test_the_first_row_is_on_top():
    ax = number_lines([("a", [1.0, 2.0]), ("b", [1.0, 2.0])], x_label="value")
    bottom, top = ax.get_ylim()
    assert bottom > top
    assert [text.get_text() for text in ax.texts] == ["a", "b"]
    assert ax.texts[0].xy[1] < ax.texts[1].xy[1]


def test_a_logarithmic_line_has_positive_numbers_and_marks_powers_of_two():
    ax = number_lines([("a", [-4.0, 0.0, 0.5, 4.0])], x_label="value", powers=(-2, 4, 3))
    assert ticks(ax) == [[0.5, 4.0]]
    assert ax.get_xlim() == (0.25, 16.0)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["$2^{-2}$", "$2^{1}$", "$2^{4}$"]
