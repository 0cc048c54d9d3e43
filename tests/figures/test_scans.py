"""Every pair is drawn, and an element that is done covers all before it."""

import matplotlib.pyplot as plt
import pytest

from llmbook.figures.scans import scans
from llmbook.foundations.recurrence import scan_rounds


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def labels_of_row(ax, y):
    return [text.get_text() for text in ax.texts if text.get_position()[1] == y][:-1]


def test_the_last_row_covers_all_prefixes():
    rounds = scan_rounds(6)
    ax = scans(6, rounds)
    assert labels_of_row(ax, 0) == list("012345")
    assert labels_of_row(ax, len(rounds)) == ["0", "0–1", "0–2", "0–3", "0–4", "0–5"]


def test_one_slanted_line_for_each_pair():
    rounds = scan_rounds(8)
    slanted = [
        tuple(line.get_xdata()) for line in scans(8, rounds).lines if len(set(line.get_xdata())) > 1
    ]
    assert sorted(slanted) == sorted(pair for pairs in rounds for pair in pairs)


def test_a_gap_is_refused():
    with pytest.raises(ValueError, match=r"pair \(0, 2\) leaves a gap before 2"):
        scans(3, [[(0, 2)]])
