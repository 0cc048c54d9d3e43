"""BatchNorm, LayerNorm and RMSNorm, from their formulas, and what they do to gradients.

Page: foundations/normalization. Papers: ioffe2015batch, algorithm 1; ba2016layer, eq. (3) and (4);
zhang2019root, eq. (4).
Left out: group and instance normalization, which belong to images, and fused kernels
(inference/fused_kernels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
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


def layer_norm_gradient(
    x: Float[Tensor, "... D"],
    upstream: Float[Tensor, "... D"],
    weight: Float[Tensor, " D"],
    *,
    epsilon: float,
) -> Float[Tensor, "... D"]:
    """The gradient with respect to x, given the one with respect to the output of `layer_norm`.

    (g - mean(g) - n mean(g n)) / sqrt(variance + epsilon), where n is the normal vector before the
    gain and g the upstream gradient times the gain: what changes the mean or the length of x alone
    is taken out.
    """
    centred = x - x.mean(-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
    normal, g = centred * inverse, upstream * weight
    along = (g * normal).mean(-1, keepdim=True) * normal
    return (g - g.mean(-1, keepdim=True) - along) * inverse


def rms_norm_gradient(
    x: Float[Tensor, "... D"],
    upstream: Float[Tensor, "... D"],
    weight: Float[Tensor, " D"],
    *,
    epsilon: float,
) -> Float[Tensor, "... D"]:
    """The same for `rms_norm`: (g - n mean(g n)) / sqrt(mean(x²) + epsilon)."""
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    normal, g = x * inverse, upstream * weight
    return (g - (g * normal).mean(-1, keepdim=True) * normal) * inverse


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


class BatchNorm(nn.Module):
    """BatchNorm over all dims but the last (ioffe2015batch, algorithms 1, 2); no decoder has it.

    In training each feature is normalized by its own mean and variance over the batch, and running
    averages are kept; in evaluation these take their place. The running variance is unbiased,
    m / (m - 1) times that of a batch of m.

    Raises:
        ValueError: in training, if the batch holds one vector: its variance is zero.
    """

    def __init__(self, hidden_size: int, *, epsilon: float, momentum: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.running_mean: Tensor
        self.running_variance: Tensor
        self.register_buffer("running_mean", torch.zeros(hidden_size))
        self.register_buffer("running_variance", torch.ones(hidden_size))
        self.epsilon, self.momentum = epsilon, momentum

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalize each feature over all vectors, or by the running averages."""
        if self.training:
            vectors = x.flatten(0, -2)  # m D
            m = len(vectors)
            if m == 1:
                raise ValueError("a batch of 1 vector has no variance: BatchNorm needs 2 to train")
            mean, variance = vectors.mean(0), vectors.var(0, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_variance.lerp_(variance * m / (m - 1), self.momentum)
        else:
            mean, variance = self.running_mean, self.running_variance
        return (x - mean) * torch.rsqrt(variance + self.epsilon) * self.weight + self.bias


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def norm(config: ModelConfig) -> LayerNorm | RMSNorm:
    """The norm that the configuration names, over D."""
    return NORMS[config.norm](config.hidden_size, epsilon=config.norm_epsilon)


@torch.no_grad()
def additions(decoder: nn.Module, tokens: Int[Tensor, "B T"]) -> list[tuple[float, float]]:
    """Mean squares at each of the 2 L additions: of what a branch adds, and of the sum.

    In the order of computing: attention and feed-forward layer of the first block, of the second,
    and so on. Their quotient is the branch's share of the stream (liu2020understanding call its
    root a dependency). `decoder` is a `llmbook.foundations.decoder.Decoder`.

    Raises:
        ValueError: if its blocks are parallel: they have one addition each.
    """
    parts: Any = decoder  # the names of its parts are those of foundations/decoder
    if parts.config.block != "sequential":
        raise ValueError(f"block {parts.config.block!r} makes one addition, not two")
    branches: list[float] = []
    sums: list[float] = []

    def output_to(found: list[float]) -> Callable[..., None]:
        return lambda module, inputs, output: found.append(output.square().mean().item())

    def input_to(found: list[float]) -> Callable[..., None]:
        return lambda module, inputs: found.append(inputs[0].square().mean().item())

    placement, hooks = parts.config.norm_placement, []
    for layer in parts.layers:
        ends = (layer.attention, layer.mlp)
        if placement == "sandwich":
            ends = (layer.attention_output_norm, layer.mlp_output_norm)
        hooks += [end.register_forward_hook(output_to(branches)) for end in ends]
        hooks += [layer.mlp_norm.register_forward_pre_hook(input_to(sums))]
        if placement == "post":  # a norm takes each sum
            hooks += [layer.attention_norm.register_forward_pre_hook(input_to(sums))]
        else:
            hooks += [layer.register_forward_hook(output_to(sums))]
    decoder(tokens)
    for hook in hooks:
        hook.remove()
    return list(zip(branches, sums, strict=True))
