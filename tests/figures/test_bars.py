"""Bars are as long as their numbers."""

import matplotlib.pyplot as plt
import pytest

from llmbook.figures.bars import stacked


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_parts_lie_end_to_end_in_the_order_of_the_rows():
    ax = stacked(
        [("one", {"parameters": 2, "gradients": 3}), ("two", {"parameters": 1})], x_label="GB"
    )
    spans = [(patch.get_x(), patch.get_width()) for patch in ax.patches]
    assert spans == [(0, 2), (2, 3), (0, 1)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]


def test_totals_and_the_limit_are_written_on_the_drawing():
    ax = stacked(
        [("one", {"parameters": 2})], x_label="GB", totals=["2 GB"], limit=(1.5, "80 GB card")
    )
    texts = [text.get_text().strip() for text in ax.texts]
    assert "2 GB" in texts
    assert "80 GB card" in texts
    assert ax.lines[0].get_xdata()[0] == 1.5
