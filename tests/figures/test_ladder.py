"""Areas of a ladder are the bytes that they stand for."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from llmbook.costs.zero import BytesEach, state_bytes_per_rank
from llmbook.figures.ladder import ladder
from llmbook.figures.style import COLOURS

ORDER = ("optimizer", "gradients", "parameters")  # as the stages shard them
THICKNESS = {"parameters": 2, "gradients": 3, "optimizer": 12}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def filled(ax):
    return [patch for patch in ax.patches if patch.get_fill()]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_filled_area_of_a_box_is_what_a_rank_holds(stage):
    R = 5
    ax = ladder([("a row", ORDER[:stage], "")], thickness=THICKNESS, num_ranks=R)
    each = BytesEach(parameter=2, gradient=3, optimizer=12)
    expected = state_bytes_per_rank(R, num_ranks=R, stage=stage, each=each) / R / each.total
    for rank in range(R):
        strips = filled(ax)[3 * rank : 3 * rank + 3]
        assert sum(s.get_width() * s.get_height() for s in strips) == pytest.approx(expected)


def test_the_shards_of_the_ranks_cover_a_part_once():
    R, gap = 4, 0.25
    ax = ladder([("a row", ["optimizer"], "")], thickness=THICKNESS, num_ranks=R, gap=gap)
    hue = COLOURS["optimizer"]
    shards = [p for p in filled(ax) if to_hex(p.get_facecolor()).upper() == hue]
    starts = [shard.get_x() - rank * (1 + gap) for rank, shard in enumerate(shards)]
    assert starts == pytest.approx([0, 0.25, 0.5, 0.75])
    assert all(shard.get_width() == 0.25 for shard in shards)


def test_every_row_and_part_is_named_in_words():
    rows = [("first", (), "16 P"), ("second", ["optimizer"], "4 P")]
    texts = [text.get_text() for text in ladder(rows, thickness=THICKNESS, num_ranks=2).texts]
    assert {"first", "16 P", "second", "4 P", "0", "1"} <= set(texts)
    assert {"parameters, 2", "gradients, 3", "optimizer, 12"} <= set(texts)
