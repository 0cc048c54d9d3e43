"""Area is the number of parameters."""

import matplotlib.pyplot as plt

from llmbook.figures.blocks import matrices


def test_every_rectangle_has_the_area_of_its_matrix_and_none_overlap():
    ax = matrices(
        [
            ("a", [("up", 4, 16, "feed_forward"), ("q", 4, 4, "attention")]),
            ("b", [("q", 4, 4, "attention")]),
        ]
    )
    assert [patch.get_width() * patch.get_height() for patch in ax.patches] == [64, 16, 16]
    first, second, third = ax.patches
    assert first.get_x() + first.get_width() < second.get_x()
    assert first.get_y() + first.get_height() < third.get_y()
    assert ax.get_aspect() == 1
    plt.close("all")
