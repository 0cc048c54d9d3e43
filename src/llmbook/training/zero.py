"""ZeRO by hand: data parallelism that shards the model state, in three stages, around any model.

The model is single-device code. A trainer lays its parameters out in flat vectors, one for each
unit (a block, and one for what belongs to none), and decides who holds, sums and updates which
part: `DataParallel` is stage 0, and each class after it shards one thing more.

Page: training/zero. Paper: rajbhandari2020zero, section 5. What it costs: `llmbook.costs.zero`.
Left out: overlap of communication and computation, accumulation over micro-batches, clipping by the
gradients' norm, sharded activations and offloading (rajbhandari2020zero, section 6;
ren2021zerooffload).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmbook.costs.collectives import ring_bytes
from llmbook.costs.zero import shard_numel
from llmbook.foundations.language_modelling import next_token_loss
from llmbook.processes import Collective, Traffic, Wire
from llmbook.training.memory import LiveBytes, storage_bytes


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (kingma2015adam, algorithm 1; loshchilov2019decoupled)."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01


class Moments:
    """AdamW on the part of a flat vector that this rank updates, in float32 at least.

    `master` is the parameters themselves, or a float32 copy of shorter ones, as in mixed precision.
    """

    def __init__(self, parameters: Float[Tensor, " n"], settings: AdamW) -> None:
        self.parameters, self.settings, self.step = parameters, settings, 0
        self.master = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        self.mean, self.square = torch.zeros_like(self.master), torch.zeros_like(self.master)

    def update(self, gradient: Float[Tensor, " n"]) -> None:
        """One step: m, v, their bias corrections, decay and descent."""
        settings, (beta1, beta2) = self.settings, self.settings.betas
        self.step += 1
        gradient = gradient.to(self.master.dtype)
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mean, square = self.mean / (1 - beta1**self.step), self.square / (1 - beta2**self.step)
        self.master.mul_(1 - settings.learning_rate * settings.weight_decay)
        self.master.addcdiv_(
            mean, square.sqrt().add_(settings.epsilon), value=-settings.learning_rate
        )
        self.parameters.copy_(self.master)


class Unit:
    """Parameters that are gathered and reduced together, as one flat vector of R equal shards.

    The parameters become views of `values`; the last shard is padded with zeros.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self.module, self.parameters = module, parameters
        self.numel = sum(parameter.numel() for parameter in parameters)
        self.shard_numel = shard_numel(self.numel, num_ranks=dist.get_world_size())
        self.values = parameters[0].detach().new_zeros(self.shard_numel * dist.get_world_size())
        for parameter, view in zip(parameters, self.views(self.values), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.gradients: Tensor | None = None  # this rank's own, of the whole unit
        self.gradient: Tensor | None = None  # the ranks' mean, of the part that this rank updates
        self.missing = 0  # parameters whose gradient has not come yet

    def views(self, flat: Float[Tensor, " padded"]) -> list[Tensor]:
        """The vector cut into the shapes of the parameters; the padding is left over."""
        pieces = flat[: self.numel].split([parameter.numel() for parameter in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    def own(self, flat: Float[Tensor, " padded"]) -> Float[Tensor, " shard"]:
        """This rank's shard of a flat vector: a view."""
        return flat.view(dist.get_world_size(), self.shard_numel)[dist.get_rank()]

    def open_gradients(self) -> None:
        """Lay out zeros, into which the backward pass adds the gradients."""
        self.gradients = torch.zeros_like(self.values)
        self.missing = len(self.parameters)
        for parameter, view in zip(self.parameters, self.views(self.gradients), strict=True):
            parameter.grad = view

    def drop_gradients(self) -> None:
        """Let go of the whole unit's gradients."""
        self.gradients = None
        for parameter in self.parameters:
            parameter.grad = None


def units_of(model: nn.Module, modules: Iterable[nn.Module]) -> list[Unit]:
    """One unit for each module, and one of the model itself for the parameters in none of them.

    Raises:
        ValueError: if two modules share a parameter, or the parameters of a unit differ in dtype.
    """
    units: list[Unit] = []
    taken: set[nn.Parameter] = set()
    for module in [*modules, model]:
        parameters = [parameter for parameter in module.parameters() if parameter not in taken]
        if module is not model and len(parameters) < len(list(module.parameters())):
            raise ValueError(f"{type(module).__name__} shares a parameter with a module before it")
        if len(dtypes := {parameter.dtype for parameter in parameters}) > 1:
            raise ValueError(f"dtypes {dtypes} of {type(module).__name__}: a flat vector has one")
        taken.update(parameters)
        if parameters:
            units.append(Unit(module, parameters))
    return units


class DataParallel:
    """Stage 0: every rank holds everything, and the gradients are summed by an all-reduce."""

    def __init__(
        self, model: nn.Module, modules: Iterable[nn.Module], settings: AdamW | None = None
    ) -> None:
        self.model = model
        self.units = units_of(model, modules)
        self.moments = [Moments(self.updated(unit), settings or AdamW()) for unit in self.units]

    def updated(self, unit: Unit) -> Float[Tensor, " n"]:
        """The part of the unit's parameters that this rank updates."""
        return unit.values

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Gradients of the mean of all ranks' losses."""
        for unit in self.units:
            unit.open_gradients()
        loss.backward()
        for unit in self.units:
            self.reduce(unit)

    def reduce(self, unit: Unit) -> None:
        """Sum the unit's gradients over the ranks, then take the mean."""
        assert unit.gradients is not None
        dist.all_reduce(unit.gradients)
        unit.gradient = unit.gradients.div_(dist.get_world_size())

    def update(self) -> None:
        """One step of the optimizer; the gradients are let go."""
        for unit, moments in zip(self.units, self.moments, strict=True):
            assert unit.gradient is not None
            moments.update(unit.gradient)
            unit.gradient = None
            unit.drop_gradients()

    def held_bytes(self) -> dict[str, int]:
        """Bytes that this rank holds now of each part of the model state."""
        gradients = [[unit.gradients, unit.gradient] for unit in self.units]
        parameters = [[unit.values, self.updated(unit)] for unit in self.units]
        everything = [[m.master, m.mean, m.square] for m in self.moments]
        return {
            "parameters": storage_bytes(parameters),
            "gradients": storage_bytes(gradients),
            "optimizer": storage_bytes([parameters, everything]) - storage_bytes(parameters),
        }

    def joined(self, unit: Unit, part: Tensor | None) -> Float[Tensor, " padded"]:
        """A unit's whole vector, from the part of it that this rank updates."""
        assert part is not None
        if part.numel() == unit.values.numel():
            return part.clone()
        flat = part.new_empty(unit.values.numel())
        dist.all_gather_single(flat, part.clone())
        return flat

    def gradients(self) -> dict[str, Tensor]:
        """The mean gradients by name, gathered from all ranks: for comparison, not for training."""
        return self.by_name([self.joined(unit, unit.gradient) for unit in self.units])

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, gathered from all ranks: for comparison, not for training."""
        return self.by_name([self.joined(unit, self.updated(unit)) for unit in self.units])

    def by_name(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """The units' flat vectors, cut into the model's parameters."""
        cut = {
            parameter: view
            for unit, flat in zip(self.units, flats, strict=True)
            for parameter, view in zip(unit.parameters, unit.views(flat), strict=True)
        }
        return {name: cut[parameter] for name, parameter in self.model.named_parameters()}


class OptimizerSharded(DataParallel):
    """Stage 1: each rank updates one shard, so it keeps that shard's moments alone."""

    def updated(self, unit: Unit) -> Float[Tensor, " shard"]:
        """This rank's shard."""
        return unit.own(unit.values)

    def reduce(self, unit: Unit) -> None:
        """A reduce-scatter: the owner of a shard alone needs its sum, which goes where it stood."""
        assert unit.gradients is not None
        unit.gradient = unit.own(unit.gradients)
        dist.reduce_scatter_single(unit.gradient, unit.gradients)
        unit.gradient.div_(dist.get_world_size())

    def update(self) -> None:
        """Update the own shard, then gather everybody's: the other half of stage 0's all-reduce."""
        super().update()
        for unit in self.units:
            dist.all_gather_single(unit.values, self.updated(unit).clone())


class GradientsSharded(OptimizerSharded):
    """Stage 2: a unit's gradients are reduced once they are complete, and one shard is kept."""

    def __init__(
        self, model: nn.Module, modules: Iterable[nn.Module], settings: AdamW | None = None
    ) -> None:
        super().__init__(model, modules, settings)
        for unit in self.units:
            unit.module.register_forward_hook(self.after_forward(unit))
            for parameter in unit.parameters:
                parameter.register_post_accumulate_grad_hook(self.after_gradient(unit))

    def after_forward(self, unit: Unit) -> Callable[[nn.Module, object, Tensor], None]:
        """A hook for the start of the unit's backward pass: the gradient of its output is known."""

        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda _: self.before_backward(unit))

        return hook

    def before_backward(self, unit: Unit) -> None:
        """Make room for the unit's gradients."""
        unit.open_gradients()

    def after_gradient(self, unit: Unit) -> Callable[[Tensor], None]:
        """A hook that reduces the unit when its last gradient has come."""

        def hook(parameter: Tensor) -> None:
            unit.missing -= 1
            if unit.missing == 0:
                self.reduce(unit)

        return hook

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """The hooks do the rest.

        Raises:
            ValueError: if a parameter got no gradient, so that its unit was never reduced.
        """
        loss.backward()
        for unit in self.units:
            if unit.gradient is None:
                raise ValueError(
                    f"{unit.missing or len(unit.parameters)} parameters of "
                    f"{type(unit.module).__name__} got no gradient: all must take part in the loss"
                )

    def reduce(self, unit: Unit) -> None:
        """A reduce-scatter into a tensor of its own, so that the whole gradients can go."""
        assert unit.gradients is not None
        unit.gradient = unit.gradients.new_empty(unit.shard_numel)
        dist.reduce_scatter_single(unit.gradient, unit.gradients)
        unit.gradient.div_(dist.get_world_size())
        unit.drop_gradients()


class ParametersSharded(GradientsSharded):
    """Stage 3: each rank keeps one shard of the parameters, too.

    A unit is gathered for its forward pass and again for its backward pass, and freed after each;
    the unit of the model itself, which both begin and end with, stays gathered in between.
    """

    def __init__(
        self, model: nn.Module, modules: Iterable[nn.Module], settings: AdamW | None = None
    ) -> None:
        self.kept: dict[Unit, Tensor] = {}
        super().__init__(model, modules, settings)
        for unit in self.units:
            unit.module.register_forward_pre_hook(lambda *_, unit=unit: self.gather(unit))
            self.free(unit)

    def updated(self, unit: Unit) -> Float[Tensor, " shard"]:
        """The shard that this rank keeps: a tensor of its own."""
        if unit not in self.kept:
            self.kept[unit] = unit.own(unit.values).clone()
        return self.kept[unit]

    def gather(self, unit: Unit) -> None:
        """Fill the unit's vector with everybody's shards, if it is empty."""
        storage = unit.values.untyped_storage()
        if storage.nbytes() == 0:
            storage.resize_(unit.values.numel() * unit.values.element_size())
            dist.all_gather_single(unit.values, self.kept[unit])

    def free(self, unit: Unit) -> None:
        """Give the vector's memory back; the parameters remain views of it, for the next gather."""
        unit.values.untyped_storage().resize_(0)

    def after_forward(self, unit: Unit) -> Callable[[nn.Module, object, Tensor], None]:
        """As in stage 2, and the unit is freed."""
        prepare = super().after_forward(unit)

        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            prepare(module, inputs, output)
            if unit.module is not self.model:
                self.free(unit)

        return hook

    def before_backward(self, unit: Unit) -> None:
        """Gather the parameters again, and make room for their gradients."""
        self.gather(unit)
        super().before_backward(unit)

    def reduce(self, unit: Unit) -> None:
        """As in stage 2; the unit's parameters have done their work for this step."""
        super().reduce(unit)
        self.free(unit)

    def update(self) -> None:
        """Update the own shard. Nobody else needs it before the next forward pass gathers it."""
        DataParallel.update(self)


def torch_adamw(parameters: Iterable[nn.Parameter], settings: AdamW) -> torch.optim.AdamW:
    """PyTorch's AdamW with the same settings."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


class Trainer(Protocol):
    """What `train` asks of a scheme: the stages here, and `llmbook.training.fully_sharded`."""

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Gradients of the mean of all ranks' losses."""

    def update(self) -> None:
        """One step of the optimizer."""

    def held_bytes(self) -> dict[str, int]:
        """Bytes that this rank holds of each part of the model state."""

    def gradients(self) -> dict[str, Tensor]:
        """The mean gradients by name."""

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one rank reports: results of the last step, and what that step held and sent."""

    losses: list[float]  # of this rank's share of the batch, step by step
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]
    held_bytes: dict[str, int]  # after the backward pass, by part of the model state
    live_bytes: int  # of every tensor alive after the backward pass, whoever made it
    peak_bytes: int  # of every tensor alive at once in the two passes, activations included
    collectives: list[Collective]
    wire_bytes: int | None  # sent by this rank's sockets, where the kernel says it

    @property
    def sent_bytes(self) -> int:
        """Bytes sent in the step, by the ring formula of each collective that was called."""
        return ring_bytes(
            (call.kind, call.given_bytes, call.num_ranks) for call in self.collectives
        )


def train(
    model: nn.Module,
    tokens: Int[Tensor, "B T"],
    *,
    trainer: Callable[[nn.Module, Iterable[nn.Module], AdamW | None], Trainer],
    modules: Sequence[str],
    num_steps: int = 1,
    settings: AdamW | None = None,
) -> Training:
    """Train a language model on this rank's share of a batch; all ranks of a group call it.

    `modules` names the parts of the model that are gathered one at a time. All steps see the same
    batch.

    Raises:
        ValueError: if the ranks do not divide the batch: its loss would not be the ranks' mean.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    if len(tokens) % num_ranks:
        raise ValueError(f"batch_size {len(tokens)} is not a multiple of num_ranks {num_ranks}")
    own = tokens.chunk(num_ranks)[rank]  # B/R T
    losses: list[float] = []
    with LiveBytes() as live:
        training = trainer(model, [model.get_submodule(name) for name in modules], settings)
        for _ in range(num_steps):
            gradients, live.peak = {}, 0
            wire, traffic = Wire(), Traffic()
            with wire, traffic:
                loss = next_token_loss(model, own)
                training.backward(loss)
            losses.append(loss.item())
            del loss  # and with it the graph
            live_bytes, peak_bytes, held_bytes = live.now, live.peak, training.held_bytes()
            gradients = training.gradients()
            with wire, traffic:
                training.update()
    return Training(
        losses=losses,
        gradients=gradients,
        parameters=training.parameters(),
        held_bytes=held_bytes,
        live_bytes=live_bytes,
        peak_bytes=peak_bytes,
        collectives=traffic.calls,
        wire_bytes=wire.sent_bytes,
    )
