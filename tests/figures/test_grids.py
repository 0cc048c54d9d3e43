"""Every entry is drawn once, row 0 on top, as strong as it is large."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from llmbook.figures.grids import grids
from llmbook.figures.style import COLOURS

LABELS = {"x_label": "key", "y_label": "query"}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_entries_keep_their_order_and_strength():
    ax = grids([("a", [[1, 0], [0.25, 0.75]])], **LABELS)
    drawn = [(patch.get_xy(), patch.get_facecolor()) for patch in ax.patches]
    assert [xy for xy, _ in drawn] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [face[3] for _, face in drawn] == [1, 0, 0.25, 0.75]
    assert all(face[:3] == to_rgb(COLOURS["attention"]) for _, face in drawn)
    assert ax.yaxis_inverted()


def test_panels_stand_apart_under_their_names():
    ax = grids([("a", [[1, 1]]), ("b", [[1]])], gap=0.5, **LABELS)
    assert [patch.get_x() for patch in ax.patches] == [0, 1, 2.5]
    named = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert (named["a"], named["b"]) == (1, 3)


def test_an_entry_outside_is_refused():
    with pytest.raises(ValueError, match=r"entry 1\.5 of 'a' is not between 0 and 1"):
        grids([("a", [[1.5]])], **LABELS)
