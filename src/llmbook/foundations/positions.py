"""How a decoder knows the order of its tokens: rotary positions, ALiBi, padding.

Page: foundations/positions. Papers: su2024roformer, eq. (15) and (34); press2022train, section 3.
Left out: learned positions, which are a table (`decoder`), and the other ways to stretch a
trained context.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rotation = tuple[Float[Tensor, "B 1 T half"], Float[Tensor, "B 1 T half"]]


def positions_under_padding(attention_mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Position of each token, counted from the row's first real one; nobody reads that of padding.

    >>> positions_under_padding(torch.tensor([[False, False, True, True, True]])).tolist()
    [[0, 0, 0, 1, 2]]
    """
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def rope_frequencies(head_dim: int, *, theta: float = 10_000.0) -> Float[Tensor, " half"]:
    """theta^(-2i / H) for i = 0 ... H/2 - 1, radians per position (su2024roformer, eq. 15).

    >>> rope_frequencies(4).tolist()
    [1.0, 0.01]
    """
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def stretched(
    frequencies: Float[Tensor, " half"],
    *,
    factor: float,
    trained_len: int,
    slow: float = 1.0,
    fast: float = 4.0,
) -> Float[Tensor, " half"]:
    """Llama 3.1's frequencies for a context longer than the trained one.

    A pair that turns fewer than `slow` times in `trained_len` tokens is slowed by `factor`, one
    that turns more than `fast` times is left alone, and between the two the change is linear in
    the number of turns. The rule stands in the model's reference code (meta2024llama31card leads
    to it), not in the paper.

    >>> stretched(rope_frequencies(4), factor=8.0, trained_len=128).tolist()
    [1.0, 0.00125]
    """
    turns = frequencies * trained_len / (2 * math.pi)
    kept = ((turns - slow) / (fast - slow)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def rotation(
    positions: Int[Tensor, "B T"], frequencies: Float[Tensor, " half"], *, dtype: torch.dtype
) -> Rotation:
    """Cosine and sine of position x frequency; the same for all heads.

    Angles are computed in float32 at least: at position 4,096 a bf16 angle would be off by whole
    radians.
    """
    wide = torch.promote_types(dtype, torch.float32)
    per_position = frequencies.to(positions.device, wide)
    angles = positions[:, None, :, None] * per_position  # B 1 T H/2
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Float[Tensor, "B N T H"], turn: Rotation) -> Float[Tensor, "B N T H"]:
    """Turn each pair (x_i, x_{i + H/2}) by its angle: the layout in halves of transformers' LLaMA.

    A rotation of query and key alike leaves in their product the difference of their positions
    alone (su2024roformer, eq. 16).
    """
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_pairs(x: Float[Tensor, "B N T H"], turn: Rotation) -> Float[Tensor, "B N T H"]:
    """Turn each pair (x_{2i}, x_{2i+1}) by its angle: the paper's layout, and Meta's own."""
    cos, sin = turn
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def pairs_to_halves(
    weight: Float[Tensor, "heads_x_H D"], *, head_dim: int
) -> Float[Tensor, "heads_x_H D"]:
    """Reorder a query or key matrix made for `rotate_pairs`, so that `rotate` scores the same."""
    rows, D = weight.shape
    return weight.view(-1, head_dim // 2, 2, D).transpose(1, 2).reshape(rows, D)


def alibi_slopes(num_heads: int) -> Float[Tensor, " N"]:
    """Slope of each head: 2^(-8 i / N) for i = 1 ... N (press2022train, section 3).

    Where N is no power of two, the slopes of the next smaller power n come first, and every other
    slope of 2 n fills up, as in the authors' code.

    >>> alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    True
    """
    power = 2 ** (num_heads.bit_length() - 1)
    exponents = [8 * i / power for i in range(1, power + 1)]
    exponents += [8 * i / (2 * power) for i in range(1, 2 * (num_heads - power), 2)]
    return 2.0 ** -torch.tensor(exponents, dtype=torch.float64)


def alibi_bias(
    positions: Int[Tensor, "B S"],
    *,
    num_queries: int,
    num_heads: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B N T S"]:
    """Minus slope x distance from key to query, added to the scores (press2022train, section 3).

    The queries are the last `num_queries` positions.
    """
    distance = positions[:, -num_queries:, None] - positions[:, None, :]  # B T S
    slopes = alibi_slopes(num_heads).to(positions.device, dtype)
    return -slopes[:, None, None] * distance[:, None]  # B N T S
