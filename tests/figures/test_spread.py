"""Ranges are drawn from the least to the most, with the middle on them."""

import matplotlib.pyplot as plt
import pytest

from llmbook.figures.curves import curves
from llmbook.figures.spread import spread
from llmbook.figures.style import COLOURS


@pytest.fixture
def ax():
    yield curves([1, 2, 4], {"predicted": [1, 2, 3]}, x_label="x", y_label="y")
    plt.close("all")


def test_each_line_reaches_from_the_least_to_the_most_and_passes_its_dot(ax):
    spread(ax, [1, 2, 4], [0, 1, 2], [1, 2, 3], [2, 4, 8])
    ranges = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert ranges == [[0, 2], [1, 4], [2, 8]]
    assert ax.lines[-1].get_xydata().tolist() == [[1, 1], [2, 2], [4, 3]]
    assert ax.lines[-1].get_color() == COLOURS["measured"]


def test_the_name_stands_at_the_dot_that_was_asked_for(ax):
    spread(ax, [1, 2, 4], [0, 1, 2], [1, 2, 3], [2, 4, 8], named_at=1)
    spread(ax, [1, 2, 4], [0, 1, 2], [1, 2, 3], [2, 4, 8])
    named = [text.xy for text in ax.texts if text.get_text() == "measured"]
    assert named == [(2, 2)]
