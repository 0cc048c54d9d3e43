"""LayerNorm and RMSNorm, from their formulas.

Page: foundations/normalization. Papers: ba2016layer, eq. (3) and (4); zhang2019root, eq. (4).
Left out: batch and group normalization, which no decoder of this book uses.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmbook.config import ModelConfig


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float32, or float64 if it was: a mean over D 16-bit numbers loses digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def layer_norm(
    x: Float[Tensor, "... D"],
    weight: Float[Tensor, " D"],
    bias: Float[Tensor, " D"],
    *,
    epsilon: float,
) -> Float[Tensor, "... D"]:
    """Normalize to (x - mean) / sqrt(variance + epsilon) * weight + bias (ba2016layer, eq. 3, 4).

    The variance divides by D, not by D - 1.
    """
    wide = at_least_float32(x)
    centred = wide - wide.mean(-1, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
    return (normal * weight + bias).to(x.dtype)


def rms_norm(
    x: Float[Tensor, "... D"], weight: Float[Tensor, " D"], *, epsilon: float
) -> Float[Tensor, "... D"]:
    """Normalize to x / sqrt(mean(x²) + epsilon) * weight over D (zhang2019root, eq. 4).

    No mean is subtracted, no bias added; the gain multiplies in the input's dtype, as in LLaMA's
    code.
    """
    wide = at_least_float32(x)
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return normal.to(x.dtype) * weight


class LayerNorm(nn.Module):
    """LayerNorm with a gain and a bias of width D."""

    def __init__(self, hidden_size: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalize the last dimension."""
        return layer_norm(x, self.weight, self.bias, epsilon=self.epsilon)


class RMSNorm(nn.Module):
    """RMSNorm with a gain of width D."""

    def __init__(self, hidden_size: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalize the last dimension."""
        return rms_norm(x, self.weight, epsilon=self.epsilon)


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def norm(config: ModelConfig) -> LayerNorm | RMSNorm:
    """The norm that the configuration names, over D."""
    return NORMS[config.norm](config.hidden_size, epsilon=config.norm_epsilon)
