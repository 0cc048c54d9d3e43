"""Lines are named where they end."""

import matplotlib.pyplot as plt
import pytest

from llmbook.figures.curves import curves


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_each_line_carries_its_name_at_its_end_and_there_is_no_legend():
    ax = curves([1, 2, 4], {"ours": [1, 2, 3], "theirs": [3, 2, 1]}, x_label="x", y_label="y")
    assert {text.get_text(): text.xy for text in ax.texts} == {"ours": (4, 3), "theirs": (4, 1)}
    assert ax.get_legend() is None


def test_points_limits_and_scales_are_drawn():
    ax = curves([1, 10], {"a": [1, 10]}, x_label="x", y_label="y", logarithmic="xy",
                points={"measured": ([2.0], [3.0])}, limit=(5.0, "roof"))  # fmt: skip
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [line.get_marker() for line in ax.lines].count("o") == 1
    assert "roof" in [text.get_text() for text in ax.texts]


def test_lines_and_dots_stand_where_their_numbers_are():
    ax = curves(
        [1, 2, 4], {"a": [5, 6, 8]}, x_label="x", y_label="y", points={"b": ([2, 3], [7, 9])}
    )
    line, dots = ax.lines
    assert list(zip(*line.get_data(), strict=True)) == [(1, 5), (2, 6), (4, 8)]
    assert list(zip(*dots.get_data(), strict=True)) == [(2, 7), (3, 9)]
