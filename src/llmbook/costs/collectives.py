"""Bytes that a rank sends in a collective operation, by the ring algorithms.

R ranks in a ring pass on one chunk at a time, each S / R bytes of a buffer of S bytes. A
reduce-scatter or an all-gather takes R - 1 such steps; no algorithm can send less in both
(patarasuk2009bandwidth). Page: training/collectives. Papers: patarasuk2009bandwidth,
thakur2005optimization. Left out: latency and trees, which come with the page.
"""

from __future__ import annotations

from collections.abc import Iterable


def reduce_scatter_bytes(buffer_bytes: int, *, num_ranks: int) -> int:
    """Bytes that each rank sends to sum buffers and keep one R-th of the sum: (R - 1) ceil(S / R).

    Raises:
        ValueError: if a size is negative or there is no rank.

    >>> reduce_scatter_bytes(4_000_000, num_ranks=4)
    3000000
    """
    if buffer_bytes < 0:
        raise ValueError(f"buffer_bytes {buffer_bytes} is negative")
    if num_ranks < 1:
        raise ValueError(f"num_ranks {num_ranks} is not positive")
    return (num_ranks - 1) * -(-buffer_bytes // num_ranks)


def all_gather_bytes(shard_bytes: int, *, num_ranks: int) -> int:
    """Bytes that each rank sends until all have every shard, its own and R - 2 others: (R - 1) S.

    `shard_bytes` is what one rank hands over, an R-th of what it gets.

    >>> all_gather_bytes(1_000_000, num_ranks=4)
    3000000
    """
    return reduce_scatter_bytes(shard_bytes * num_ranks, num_ranks=num_ranks)


def all_reduce_bytes(buffer_bytes: int, *, num_ranks: int) -> int:
    """Bytes that each rank sends to give all the sum of their buffers: 2 (R - 1) ceil(S / R).

    A reduce-scatter and an all-gather of its result (patarasuk2009bandwidth); below 2 S however
    large R is.

    >>> all_reduce_bytes(4_000_000, num_ranks=4)
    6000000
    """
    return 2 * reduce_scatter_bytes(buffer_bytes, num_ranks=num_ranks)


def all_to_all_bytes(buffer_bytes: int, *, num_ranks: int) -> int:
    """Bytes that each rank sends to give each other an R-th of its buffer: (R - 1) ceil(S / R).

    >>> all_to_all_bytes(4_000_000, num_ranks=4)
    3000000
    """
    return reduce_scatter_bytes(buffer_bytes, num_ranks=num_ranks)


FORMULAS = {
    "all_reduce": all_reduce_bytes,
    "all_gather": all_gather_bytes,
    "reduce_scatter": reduce_scatter_bytes,
    "all_to_all": all_to_all_bytes,
}
"""The formula of each collective, applied to the bytes that one rank hands over."""


def ring_bytes(calls: Iterable[tuple[str, int, int]]) -> int:
    """Bytes that a rank sends in collectives, each given as (kind, bytes handed over, ranks).

    Raises:
        ValueError: if a kind has no formula here.

    >>> ring_bytes([("reduce_scatter", 4_000_000, 4), ("all_gather", 1_000_000, 4)])
    6000000
    """
    total = 0
    for kind, given_bytes, num_ranks in calls:
        if kind not in FORMULAS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(FORMULAS)}")
        total += FORMULAS[kind](given_bytes, num_ranks=num_ranks)
    return total
