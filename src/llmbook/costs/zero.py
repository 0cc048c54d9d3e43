"""What the model state costs each data-parallel rank, in bytes held and sent, by ZeRO stage.

The model state is parameters, gradients and what the optimizer keeps. Stage 0 gives every rank all
of it (plain data parallelism); stage 1 shards the optimizer's share, stage 2 the gradients too,
stage 3 the parameters too. A vector of P numbers is padded so that R equal shards cover it: ceil(P
/ R) numbers each.

Page: training/zero. Paper: rajbhandari2020zero, sections 3, 5 and 7.
Left out: activations, buffers and what is gathered for a moment (training/memory).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class BytesEach:
    """Bytes that one parameter takes in each part of the model state."""

    parameter: int
    gradient: int
    optimizer: int  # K in the paper

    @property
    def total(self) -> int:
        """Bytes of model state for each parameter where nothing is sharded."""
        return self.parameter + self.gradient + self.optimizer

    def sharded(self, stage: int) -> int:
        """Bytes of each parameter that a stage spreads over the ranks; the rest stands on each.

        Raises:
            ValueError: if the stage is none of 0, 1, 2 and 3.

        >>> [MIXED_ADAM.sharded(stage) for stage in STAGES]
        [0, 12, 14, 16]
        """
        require_stage(stage)
        return sum((self.optimizer, self.gradient, self.parameter)[:stage])


MIXED_ADAM = BytesEach(
    parameter=2, gradient=2, optimizer=12
)  # fp16 or bf16; fp32 master weight, two moments
FP32_ADAM = BytesEach(parameter=4, gradient=4, optimizer=8)
FP64_ADAM = BytesEach(parameter=8, gradient=8, optimizer=16)


def require_stage(stage: int) -> None:
    """Refuse a stage that ZeRO does not have.

    Raises:
        ValueError: if the stage is none of 0, 1, 2 and 3.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage} is not one of {', '.join(map(str, STAGES))}")


def shard_numel(num_parameters: int, *, num_ranks: int) -> int:
    """Numbers in one of R equal shards of a padded vector of P numbers: ceil(P / R).

    Raises:
        ValueError: if P is negative or there is no rank.

    >>> shard_numel(10, num_ranks=4)
    3
    """
    if num_parameters < 0:
        raise ValueError(f"num_parameters {num_parameters} is negative")
    if num_ranks < 1:
        raise ValueError(f"num_ranks {num_ranks} is not positive")
    return -(-num_parameters // num_ranks)


def row_shard_numel(shapes: Iterable[tuple[int, ...]], *, num_ranks: int) -> int:
    """Numbers in a shard where each tensor is cut by rows, as FSDP2 does: ceil(rows / R) rows each.

    The first rank really has so many; others may have fewer, and pad them in every collective.

    >>> row_shard_numel([(11, 7), (11,)], num_ranks=4)
    24
    """
    return sum(shard_numel(shape[0], num_ranks=num_ranks) * prod(shape[1:]) for shape in shapes)


def state_bytes_per_rank(
    num_parameters: int, *, num_ranks: int, stage: int, each: BytesEach = MIXED_ADAM
) -> int:
    """Bytes of model state that each rank holds (rajbhandari2020zero, section 5 and figure 1).

    With p, g and K bytes a parameter and P' = R ceil(P / R): stage 0 holds (p + g + K) P', stage 1
    (p + g) P' + K P' / R, stage 2 p P' + (g + K) P' / R, stage 3 (p + g + K) P' / R.
    Sum over the units where a model is sharded layer by layer.

    >>> state_bytes_per_rank(7_500_000_000, num_ranks=64, stage=3) / 1e9
    1.875
    """
    sharded = each.sharded(stage)
    on_every_rank = each.total - sharded
    return (on_every_rank * num_ranks + sharded) * shard_numel(num_parameters, num_ranks=num_ranks)


def sent_bytes_per_rank(
    num_parameters: int, *, num_ranks: int, stage: int, each: BytesEach = MIXED_ADAM
) -> int:
    """Bytes that each rank sends in one step, by ring collectives (rajbhandari2020zero, section 7).

    Stage 0 all-reduces gradients, which is a reduce-scatter and an all-gather of them; stages 1 and
    2 reduce-scatter gradients and all-gather parameters; stage 3 gathers parameters twice, for the
    forward and for the backward pass. Each moves (R - 1) ceil(P / R) numbers: 2 P, 2 P, 2 P and 3 P
    where R is large.

    >>> [sent_bytes_per_rank(1_000_000, num_ranks=4, stage=stage) for stage in STAGES]
    [3000000, 3000000, 3000000, 4500000]
    """
    require_stage(stage)
    gathered = (each.gradient, each.parameter, each.parameter, 2 * each.parameter)[stage]
    passed_on = (num_ranks - 1) * shard_numel(num_parameters, num_ranks=num_ranks)
    return (each.gradient + gathered) * passed_on


def largest_model(
    memory_bytes: int, *, num_ranks: int, stage: int, each: BytesEach = MIXED_ADAM
) -> int:
    """Parameters of the largest model whose state fits each rank (rajbhandari2020zero, table 2).

    An upper bound: nothing is left for activations.

    Raises:
        ValueError: if the memory is negative.

    >>> largest_model(32_000_000_000, num_ranks=64, stage=3)
    128000000000
    """
    if memory_bytes < 0:
        raise ValueError(f"memory_bytes {memory_bytes} is negative")
    one_number_in_each_shard = state_bytes_per_rank(
        num_ranks, num_ranks=num_ranks, stage=stage, each=each
    )
    return memory_bytes // one_number_in_each_shard * num_ranks


def ranks_needed(
    num_parameters: int, memory_bytes: int, *, stage: int, each: BytesEach = MIXED_ADAM
) -> int:
    """The smallest number of ranks that hold the state in this memory each.

    From M >= a P + b P / R, where a bytes a parameter stand on every rank and b are sharded; the
    padding may take another rank.

    Raises:
        ValueError: if what stands on every rank does not fit, however many ranks there are.

    >>> ranks_needed(7_500_000_000, 32_000_000_000, stage=2)
    7
    """
    sharded = each.sharded(stage)
    on_every_rank = (each.total - sharded) * num_parameters
    left = memory_bytes - on_every_rank
    first = -(-sharded * num_parameters // left) if left > 0 else num_parameters
    for num_ranks in range(max(1, first), num_parameters + 1):
        if (
            state_bytes_per_rank(num_parameters, num_ranks=num_ranks, stage=stage, each=each)
            <= memory_bytes
        ):
            return num_ranks
        if left <= 0 or not sharded:
            break
    raise ValueError(
        f"memory_bytes {memory_bytes} is too little at stage {stage}: "
        f"{on_every_rank} bytes stand on every rank, however many ranks there are"
    )
