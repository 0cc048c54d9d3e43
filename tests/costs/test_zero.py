"""Every printed cell of the ZeRO paper, and the formulas against vectors that are really cut."""

import re

import pytest

from llmbook.costs.collectives import all_gather_bytes, all_reduce_bytes, reduce_scatter_bytes
from llmbook.costs.zero import (
    FP32_ADAM,
    FP64_ADAM,
    MIXED_ADAM,
    STAGES,
    BytesEach,
    largest_model,
    ranks_needed,
    row_shard_numel,
    sent_bytes_per_rank,
    shard_numel,
    state_bytes_per_rank,
)
from llmbook.published import check, number, numbers

SIZES = {"7.5B": 7_500_000_000, "128B": 128_000_000_000, "1T": 10**12}


def ids(start):
    return sorted(id for id in numbers() if id.startswith(start))


@pytest.mark.parametrize("id", ids("zero.figure1."))
def test_figure_1(id):
    stage = int(id[-1])
    assert check(state_bytes_per_rank(SIZES["7.5B"], num_ranks=64, stage=stage) / 1e9, id)


@pytest.mark.parametrize("id", ids("zero.table1."))
def test_table_1(id):
    size, ranks, stage = re.fullmatch(r"zero\.table1\.(.+)\.nd(\d+)\.stage(\d)", id).groups()
    ours = state_bytes_per_rank(SIZES[size], num_ranks=int(ranks), stage=int(stage)) / 1e9
    assert check(ours, id).agrees


@pytest.mark.parametrize("id", [id for id in ids("zero.table2.") if "stage" in id])
def test_table_2(id):
    """A model is split over `mp` devices, and each part is trained by 64 ranks of 32 GB."""
    parts, stage = map(int, re.fullmatch(r"zero\.table2\.mp(\d+)\.stage(\d)", id).groups())
    unit = {"billion parameters": 10**9, "trillion parameters": 10**12}[number(id).unit]
    ours = parts * largest_model(32_000_000_000, num_ranks=64, stage=stage) / unit
    assert check(ours, id).agrees


def test_the_ledger_holds_what_the_paper_prints():
    assert len(ids("zero.figure1.")) == 4
    assert len(ids("zero.table1.")) == 6 * 9
    assert len(ids("zero.table2.")) == 5 * 6
    unchecked = [id for id in ids("zero.") if number(id).unchecked]
    assert all("measured" in id for id in unchecked)
    assert len(unchecked) == 5 * 2


def test_what_the_paper_says_in_its_text():
    assert check(
        state_bytes_per_rank(1_500_000_000, num_ranks=1, stage=0) / 1e9, "zero.section3.gpt2"
    )
    stage3, plain = (sent_bytes_per_rank(1024, num_ranks=64, stage=stage) for stage in (3, 0))
    assert check(stage3 / plain, "zero.section7.stage3").agrees


def cut(num_parameters, num_ranks):
    """Shards of a real vector, padded until they are equal."""
    vector = list(range(num_parameters))
    while len(vector) % num_ranks:
        vector.append(0)
    size = len(vector) // num_ranks
    return [vector[rank * size : (rank + 1) * size] for rank in range(num_ranks)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_parameters", [1, 6, 97, 100])
def test_state_is_the_size_of_vectors_that_are_cut(num_parameters, num_ranks):
    each = BytesEach(parameter=2, gradient=3, optimizer=7)
    shards = cut(num_parameters, num_ranks)
    shard, full = len(shards[0]), sum(map(len, shards))
    assert shard_numel(num_parameters, num_ranks=num_ranks) == shard
    expected = [
        2 * full + 3 * full + 7 * full,
        2 * full + 3 * full + 7 * shard,
        2 * full + 3 * shard + 7 * shard,
        2 * shard + 3 * shard + 7 * shard,
    ]
    for stage in STAGES:
        ours = state_bytes_per_rank(num_parameters, num_ranks=num_ranks, stage=stage, each=each)
        assert ours == expected[stage]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    "each", [MIXED_ADAM, FP32_ADAM, FP64_ADAM, BytesEach(parameter=2, gradient=4, optimizer=8)]
)
def test_traffic_is_the_sum_of_the_collectives_of_a_step(num_ranks, each):
    P = 97
    shard = shard_numel(P, num_ranks=num_ranks)
    scatter = reduce_scatter_bytes(shard * num_ranks * each.gradient, num_ranks=num_ranks)
    gather = all_gather_bytes(shard * each.parameter, num_ranks=num_ranks)
    steps = [
        all_reduce_bytes(shard * num_ranks * each.gradient, num_ranks=num_ranks),
        scatter + gather,
        scatter + gather,
        gather + gather + scatter,
    ]
    found = [
        sent_bytes_per_rank(P, num_ranks=num_ranks, stage=stage, each=each) for stage in STAGES
    ]
    assert found == steps


def test_stage_3_sends_half_as_much_again():
    """rajbhandari2020zero, section 7: 2 Psi for stages 1 and 2 as without ZeRO, 3 Psi for stage 3."""
    P, R = 7_500_000_000, 64
    plain, one, two, three = (sent_bytes_per_rank(P, num_ranks=R, stage=stage) for stage in STAGES)
    assert plain == one == two
    assert three / plain == 1.5
    assert plain / (2 * P) == pytest.approx(2, rel=1 / R)


def test_many_ranks_leave_an_eighth_and_a_fourth():
    """rajbhandari2020zero, section 5: memory falls to 4x, 8x, and N_d times less."""
    P, R = 10**9, 10**6
    full, *rest = (state_bytes_per_rank(P, num_ranks=R, stage=stage) for stage in STAGES)
    assert [full / held for held in rest] == pytest.approx([4, 8, R], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("memory", [40, 999, 1600, 5000])
def test_largest_model_fits_and_the_next_does_not(stage, memory):
    for num_ranks in (1, 2, 3, 5):
        found = largest_model(memory, num_ranks=num_ranks, stage=stage)
        fitting = [
            P
            for P in range(memory * num_ranks + 2)
            if state_bytes_per_rank(P, num_ranks=num_ranks, stage=stage) <= memory
        ]
        assert found == max(fitting)


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_needed_is_the_first_that_fits(stage):
    P = 101
    for memory in range(0, 1700, 7):
        fitting = [
            R
            for R in range(1, P + 1)
            if state_bytes_per_rank(P, num_ranks=R, stage=stage) <= memory
        ]
        if fitting:
            assert ranks_needed(P, memory, stage=stage) == fitting[0]
        else:
            with pytest.raises(
                ValueError, match=f"memory_bytes {memory} is too little at stage {stage}"
            ):
                ranks_needed(P, memory, stage=stage)


def test_rows_are_padded_tensor_by_tensor():
    shapes = [(11, 7), (11,), (4, 2, 3)]
    rows = [[-(-shape[0] // 4), *shape[1:]] for shape in shapes]
    assert rows == [[3, 7], [3], [1, 2, 3]]
    assert row_shard_numel(shapes, num_ranks=4) == 21 + 3 + 6


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="stage 4 is not one of 0, 1, 2, 3"):
        state_bytes_per_rank(1, num_ranks=1, stage=4)
    with pytest.raises(ValueError, match="stage -1"):
        sent_bytes_per_rank(1, num_ranks=1, stage=-1)
    with pytest.raises(ValueError, match="num_ranks 0 is not positive"):
        shard_numel(1, num_ranks=0)
    with pytest.raises(ValueError, match="num_parameters -1 is negative"):
        shard_numel(-1, num_ranks=1)
    with pytest.raises(ValueError, match="memory_bytes -1 is negative"):
        largest_model(-1, num_ranks=1, stage=0)
