"""PyTorch's FSDP2 applied from outside: what does in production what ZeRO's stage 3 says.

Page: training/fully_sharded, training/zero. Paper: zhao2023pytorch, on its predecessor.
Left out: mixed precision, prefetching and hybrid sharding, which come with the page.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
import torch._dynamo  # fully_shard asks for it: imported once here, not in every rank
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llmbook.config import ModelConfig
from llmbook.foundations.decoder import Decoder
from llmbook.foundations.language_modelling import next_token_loss
from llmbook.training.memory import storage_bytes
from llmbook.training.zero import AdamW, torch_adamw


class FullySharded:
    """A trainer like those of `llmbook.training.zero`, through FSDP2 and PyTorch's AdamW.

    FSDP2 shards each parameter by itself, along its first dimension, and pads rows that the ranks
    do not divide, where ZeRO's flat vector is padded once.
    """

    def __init__(
        self, model: nn.Module, modules: Iterable[nn.Module], settings: AdamW | None = None
    ) -> None:
        self.model = fully_sharded(model, modules)
        self.optimizer = torch_adamw(model.parameters(), settings or AdamW())

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """FSDP2's hooks gather, reduce and free."""
        loss.backward()

    def update(self) -> None:
        """One step of PyTorch's AdamW, which sees this rank's rows alone."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def held_bytes(self) -> dict[str, int]:
        """Bytes that this rank holds now of each part of the model state."""
        sharded = list(self.model.parameters())
        return {
            "parameters": storage_bytes(sharded),
            "gradients": storage_bytes([parameter.grad for parameter in sharded]),
            "optimizer": storage_bytes(list(self.optimizer.state.values())),
        }

    def gradients(self) -> dict[str, Tensor]:
        """The mean gradients by name, gathered from all ranks: for comparison, not for training."""
        return {name: whole(parameter.grad) for name, parameter in self.model.named_parameters()}

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, gathered from all ranks: for comparison, not for training."""
        return {name: whole(parameter.data) for name, parameter in self.model.named_parameters()}


def fully_sharded(model: nn.Module, modules: Iterable[nn.Module]) -> nn.Module:
    """Apply FSDP2 in place: to each module, then to the model for the parameters in none."""
    # It warns of outputs that are views, lest somebody adds to them in place. Nobody here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [*modules, model]:
        fully_shard(module, mesh=mesh)
    return model


def whole(sharded: Tensor | None) -> Tensor:
    """The whole of a tensor that FSDP2 sharded, gathered from all ranks."""
    assert isinstance(sharded, DTensor)
    return sharded.full_tensor()


def sharded_decoder(config: ModelConfig) -> nn.Module:
    """A decoder in bfloat16 under FSDP2, block by block: what a rehearsal builds."""
    decoder = Decoder(config).to(torch.bfloat16)
    return fully_sharded(decoder, decoder.layers)


def forward_and_backward(model: nn.Module, *, batch_size: int, seq_len: int) -> None:
    """The two passes of a step over T + 1 tokens of each sequence: what a rehearsal runs."""
    next_token_loss(model, torch.zeros(batch_size, seq_len + 1, dtype=torch.long)).backward()
