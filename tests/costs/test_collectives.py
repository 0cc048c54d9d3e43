"""Ring formulas against a ring that is really walked, chunk by chunk."""

import pytest

from llmbook.costs.collectives import (
    FORMULAS,
    all_gather_bytes,
    all_reduce_bytes,
    all_to_all_bytes,
    reduce_scatter_bytes,
    ring_bytes,
)


def walked(num_ranks, chunk_bytes, *, gather):
    """Bytes that each rank sends until its chunk is summed everywhere it must be, by simulation.

    Every rank holds a set of contributions for each chunk; a step hands one chunk to the right.
    """
    R = num_ranks
    held = [
        [{rank} for _ in range(R)] for rank in range(R)
    ]  # rank, chunk -> whose numbers are in it
    sent = [0] * R
    for step in range(R - 1):
        moving = [(rank - step) % R for rank in range(R)]
        parcels = [set(held[rank][moving[rank]]) for rank in range(R)]
        for rank in range(R):
            held[(rank + 1) % R][moving[rank]] |= parcels[rank]
            sent[rank] += chunk_bytes
    whole = set(range(R))
    assert all(held[rank][(rank + 1) % R] == whole for rank in range(R)), "a reduce-scatter is done"
    if gather:
        done = [{(rank + 1) % R} for rank in range(R)]
        for step in range(R - 1):
            moving = [(rank + 1 - step) % R for rank in range(R)]
            for rank in range(R):
                assert moving[rank] in done[rank]
            for rank in range(R):
                done[(rank + 1) % R].add(moving[rank])
                sent[rank] += chunk_bytes
        assert all(found == whole for found in done), "an all-gather is done"
    return sent


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7, 16])
def test_formulas_are_what_a_walked_ring_sends(num_ranks):
    chunk = 1000
    half = walked(num_ranks, chunk, gather=False)
    both = walked(num_ranks, chunk, gather=True)
    assert set(half) == {reduce_scatter_bytes(chunk * num_ranks, num_ranks=num_ranks)}
    assert set(both) == {all_reduce_bytes(chunk * num_ranks, num_ranks=num_ranks)}
    assert all_gather_bytes(chunk, num_ranks=num_ranks) == both[0] - half[0]


def test_all_to_all_keeps_one_part_and_sends_the_others():
    parts = [[(rank, to) for to in range(5)] for rank in range(5)]
    leaving = [part for part in parts[2] if part[1] != 2]
    assert all_to_all_bytes(5 * 300, num_ranks=5) == 300 * len(leaving)


def test_an_all_reduce_stays_below_twice_its_buffer_and_comes_near():
    """Bandwidth-optimal (patarasuk2009bandwidth): 2 S (R - 1) / R."""
    for num_ranks in (2, 8, 64, 1024):
        sent = all_reduce_bytes(2**20, num_ranks=num_ranks)
        assert sent * num_ranks == 2 * 2**20 * (num_ranks - 1)


def test_a_buffer_that_ranks_do_not_divide_is_sent_in_rounded_chunks():
    assert (
        reduce_scatter_bytes(10, num_ranks=4) == 9
    )  # three chunks of 3 bytes, of which 12 cover 10
    assert all_reduce_bytes(10, num_ranks=1) == 0


def test_a_sequence_is_the_sum_of_its_calls():
    calls = [(kind, 1200, num_ranks) for kind in FORMULAS for num_ranks in (2, 3, 4)]
    one_by_one = sum(FORMULAS[kind](size, num_ranks=num_ranks) for kind, size, num_ranks in calls)
    assert ring_bytes(calls) == one_by_one


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="buffer_bytes -1 is negative"):
        reduce_scatter_bytes(-1, num_ranks=2)
    with pytest.raises(ValueError, match="num_ranks 0 is not positive"):
        all_gather_bytes(8, num_ranks=0)
    with pytest.raises(ValueError, match="kind 'gossip' is not one of all_reduce"):
        ring_bytes([("gossip", 1, 2)])
