"""A parallel engine rehearsed at its true size: every collective counted, nothing computed.

One process plays one of R ranks on a fake process group; tensors have shapes and no memory. So
FSDP, DTensor or pipelining go through the very calls that they would make on thousands of devices.

Page: training/zero, training/device_mesh. Left out: time, and values that steer the computation.
The fake group is internal to PyTorch (`torch.testing._internal`): this module alone touches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from llmbook.processes import Collective, Traffic, run_alone


@dataclass(frozen=True)
class Rehearsal:
    """What one rank of a rehearsal saw."""

    num_parameters: int  # of the whole model
    collectives: list[Collective]  # that the rank called in the step, in order


def rehearse(
    build: Callable[[], nn.Module],
    step: Callable[[nn.Module], object],
    *,
    num_ranks: int,
    rank: int = 0,
    deadline: float = 120.0,
) -> Rehearsal:
    """Build a model and run a step as one rank of a fake group of R, in a process of its own.

    `build` makes the model and applies the engine to it; it runs on the meta device. `step` runs on
    fake tensors of the CPU. Both are functions of importable modules, or `functools.partial` of
    such.

    Raises:
        ValueError: if the group has no such rank.
        RuntimeError: if this process is itself a rank of a group.
        RankFailed, TimeoutError: as `llmbook.processes.run`.
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} is not one of {num_ranks}")
    if dist.is_initialized():
        raise RuntimeError("a rehearsal needs a process without a process group; this one has one")
    return run_alone(on_a_fake_group, build, step, num_ranks, rank, deadline=deadline)


def on_a_fake_group(
    build: Callable[[], nn.Module], step: Callable[[nn.Module], object], num_ranks: int, rank: int
) -> Rehearsal:
    """The rehearsal itself, in a process that ends with it."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=num_ranks, store=FakeStore())
    with torch.device("meta"):
        model = build()
    with FakeTensorMode(allow_non_fake_inputs=True), Traffic() as traffic:
        step(model.to_empty(device="cpu"))  # fake: engines refuse to train on the meta device
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Rehearsal(num_parameters, traffic.calls)


def extended(counts: tuple[int, int], layers: tuple[int, int], *, num_layers: int) -> int:
    """A count for L layers from two smaller rehearsals, where each layer adds the same.

    Raises:
        ValueError: if the two rehearsals have equally many layers, or differ by no whole count a
        layer.

    >>> extended((30, 50), (2, 4), num_layers=80)
    810
    """
    (few, many), (l1, l2) = counts, layers
    if l1 == l2 or (many - few) % (l2 - l1):
        raise ValueError(f"counts {counts} at {layers} layers give no whole count for each layer")
    return few + (many - few) // (l2 - l1) * (num_layers - l1)
