"""Every cell is drawn once, in the colour of its name."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from llmbook.figures.cells import cells
from llmbook.figures.style import COLOURS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_cells_carry_the_colours_of_their_names_column_by_column():
    names = [["forward", "idle"], ["backward", "forward"], ["idle", "idle"]]
    ax = cells([("one row", names)])
    drawn = [to_hex(patch.get_facecolor()).upper() for patch in ax.patches]
    assert drawn == [COLOURS[name] for column in names for name in column]


def test_columns_stand_apart_and_rows_below_each_other():
    ax = cells([("first", [["idle"], ["idle"]]), ("second", [["idle"], ["idle"]])], gap=0.5)
    corners = [patch.get_xy() for patch in ax.patches]
    assert [x for x, _ in corners] == [0, 1.5, 0, 1.5]
    assert corners[2][1] > corners[0][1] + 0.5
    assert [text.get_text() for text in ax.texts] == ["first", "second"]
