"""How a decoder knows the order of its tokens, and how a trained context is stretched.

Page: foundations/positions. Papers: vaswani2017attention, section 3.5 (sinusoids);
dai2019transformerxl, section 3.3 (relative scores); su2024roformer, eq. (15) and (34) (rotation);
press2022train, section 3 (ALiBi); chen2023extending and peng2024yarn (stretching).
Left out: learned positions, which are a table (`decoder`), and frequencies that change while a
text grows.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig

Rotation = tuple[Float[Tensor, "B 1 T half"], Float[Tensor, "B 1 T half"]]


def positions_under_padding(attention_mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Position of each token, counted from the row's first real one; nobody reads that of padding.

    >>> positions_under_padding(torch.tensor([[False, False, True, True, True]])).tolist()
    [[0, 0, 0, 1, 2]]
    """
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def sinusoidal_positions(
    num_positions: int, *, hidden_size: int, theta: float = 10_000.0
) -> Float[Tensor, "S D"]:
    """Row p holds sin and cos of p theta^(-2i / D), in turn (vaswani2017attention, section 3.5).

    >>> sinusoidal_positions(2, hidden_size=4)[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    angles = torch.arange(num_positions)[:, None] * rope_frequencies(hidden_size, theta=theta)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # S D/2 2 -> S D


class RelativePositions(nn.Module):
    """Transformer-XL's part of a layer's scores: what depends on the distance to the key.

    The score of query i and key j is (q_i + u) k_j + (q_i + v) W R_{i - j}, over sqrt(H), with
    sinusoids R and learned W, u and v (dai2019transformerxl, section 3.3).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        N, H = config.num_heads, config.head_dim
        self.hidden_size = config.hidden_size
        self.distance_key = nn.Linear(config.hidden_size, N * H, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(N, 1, H))  # u
        self.position_bias = nn.Parameter(torch.zeros(N, 1, H))  # v

    def forward(
        self, query: Float[Tensor, "B N T H"], *, num_keys: int
    ) -> tuple[Float[Tensor, "B N T H"], Float[Tensor, "B N T S"]]:
        """Query + u, to be multiplied by the keys, and the bias to be added to the scores.

        The queries are the last T of the S positions; entries of keys to their right mean nothing.
        """
        B, N, T, H = query.shape
        table = sinusoidal_positions(num_keys, hidden_size=self.hidden_size).to(query)  # S D
        keys = self.distance_key(table).unflatten(-1, (N, H)).transpose(0, 1)  # N S H
        by_distance = (query + self.position_bias) @ keys.mT  # B N T S: distance 0 ... S - 1
        index = distances(num_keys, num_queries=T).clamp(min=0).to(query.device)  # T S
        bias = by_distance.gather(-1, index.expand(B, N, T, num_keys))
        return query + self.content_bias, bias * H**-0.5


def distances(num_keys: int, *, num_queries: int) -> Int[Tensor, "T S"]:
    """How far each key lies to the left of each query; the queries are the last positions.

    >>> distances(3, num_queries=2).tolist()
    [[1, 0, -1], [2, 1, 0]]
    """
    positions = torch.arange(num_keys)
    return positions[num_keys - num_queries :, None] - positions


def rope_frequencies(head_dim: int, *, theta: float = 10_000.0) -> Float[Tensor, " half"]:
    """theta^(-2i / H) for i = 0 ... H/2 - 1, radians per position (su2024roformer, eq. 15).

    Raises:
        ValueError: if `head_dim` is odd.

    >>> rope_frequencies(4).tolist()
    [1.0, 0.01]
    """
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: positions turn pairs")
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def stretched(
    frequencies: Float[Tensor, " half"],
    *,
    factor: float,
    trained_len: int,
    slow: float = 1.0,
    fast: float = 4.0,
) -> Float[Tensor, " half"]:
    """Frequencies slowed by parts, as in Llama 3.1, for a context longer than the trained one.

    A pair that turns fewer than `slow` times in `trained_len` tokens is slowed by `factor`, one
    that turns more than `fast` times is left alone, and between the two the change is linear in
    the number of turns: "NTK-by-parts" of peng2024yarn, with `fast` 32 there. Llama 3.1's rule
    stands in the model's reference code (meta2024llama31card leads to it), not in the paper.

    >>> stretched(rope_frequencies(4), factor=8.0, trained_len=128).tolist()
    [1.0, 0.00125]
    """
    turns = frequencies * trained_len / (2 * math.pi)
    kept = ((turns - slow) / (fast - slow)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def ntk_theta(theta: float, *, factor: float, head_dim: int) -> float:
    """The base at which the slowest pair is `factor` times slower and the fastest is unchanged.

    theta factor^(H / (H - 2)): "NTK-aware" interpolation (peng2024yarn, section 3.1).

    >>> ntk_theta(100.0, factor=3.0, head_dim=4)
    900.0
    """
    if head_dim < 4:
        raise ValueError(f"head_dim {head_dim} has one pair: none to keep and one to slow")
    return float(theta * factor ** (head_dim / (head_dim - 2)))


def pair_with_turns(turns: float, *, head_dim: int, theta: float, trained_len: int) -> float:
    """Index i, not whole, of the pair that turns so many times in `trained_len` positions.

    theta^(-2i / H) trained_len = 2 pi turns, solved for i.
    """
    return head_dim * math.log(trained_len / (2 * math.pi * turns)) / (2 * math.log(theta))


def yarn_frequencies(
    head_dim: int,
    *,
    theta: float,
    factor: float,
    trained_len: int,
    slow: float = 1.0,
    fast: float = 32.0,
) -> Float[Tensor, " half"]:
    """YaRN's frequencies as its authors' code and transformers compute them (peng2024yarn).

    Pairs that turn more than `fast` times in `trained_len` are left alone, those below `slow`
    turns are slowed by `factor`. Between the two the paper is linear in the turns (`stretched`
    with `fast` 32), the code in the index of the pair, from a floor to a ceiling.
    """
    trained = rope_frequencies(head_dim, theta=theta)
    first, last = (
        pair_with_turns(turns, head_dim=head_dim, theta=theta, trained_len=trained_len)
        for turns in (fast, slow)
    )
    low, high = max(math.floor(first), 0), min(math.ceil(last), head_dim - 1)
    width = max(high - low, 0.001)  # the code's own guard where both are one index
    slowed = ((torch.arange(head_dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    return trained * (1 - slowed + slowed / factor)


def yarn_magnitude(factor: float) -> float:
    """0.1 ln(factor) + 1: by how much YaRN lengthens queries and keys (peng2024yarn, section 3.4).

    Scores grow by its square, against the flatter softmax over a longer context.

    >>> yarn_magnitude(1.0)
    1.0
    """
    return 0.1 * math.log(factor) + 1


def configured_frequencies(config: ModelConfig) -> Float[Tensor, " half"]:
    """The rotary frequencies that a configuration asks for, stretched or not.

    Raises:
        ValueError: if `rope_factor` is below 1.
    """
    H, theta, factor = config.rotary_dim, config.rope_theta, config.rope_factor
    if factor < 1:
        raise ValueError(f"rope_factor {factor} is below 1: a context is stretched, not shrunk")
    trained, trained_len = rope_frequencies(H, theta=theta), config.rope_trained_len
    if config.rope_scaling == "linear":  # position interpolation (chen2023extending)
        return trained / factor
    if config.rope_scaling == "ntk":
        return rope_frequencies(H, theta=ntk_theta(theta, factor=factor, head_dim=H))
    if config.rope_scaling == "yarn":
        return yarn_frequencies(H, theta=theta, factor=factor, trained_len=trained_len)
    return stretched(trained, factor=factor, trained_len=trained_len)


def rotation(
    positions: Int[Tensor, "B T"],
    frequencies: Float[Tensor, " half"],
    *,
    dtype: torch.dtype,
    magnitude: float = 1.0,
) -> Rotation:
    """Cosine and sine of position x frequency; the same for all heads.

    Angles are computed in float32 at least: at position 4,096 a bf16 angle would be off by whole
    radians. A `magnitude` lengthens what is turned by as much.
    """
    wide = torch.promote_types(dtype, torch.float32)
    per_position = frequencies.to(positions.device, wide)
    angles = positions[:, None, :, None] * per_position  # B 1 T H/2
    return (angles.cos() * magnitude).to(dtype), (angles.sin() * magnitude).to(dtype)


def configured_rotation(
    config: ModelConfig, positions: Int[Tensor, "B T"], *, dtype: torch.dtype
) -> Rotation:
    """The rotation that a configuration asks for at these positions.

    Latent attention lengthens whole queries and keys by YaRN's magnitude, so here it stays 1.
    """
    lengthened = config.rope_scaling == "yarn" and not config.kv_latent_dim
    magnitude = yarn_magnitude(config.rope_factor) if lengthened else 1.0
    frequencies = configured_frequencies(config)
    return rotation(positions, frequencies, dtype=dtype, magnitude=magnitude)


def rotate(x: Float[Tensor, "B N T H"], turn: Rotation) -> Float[Tensor, "B N T H"]:
    """Turn each pair (x_i, x_{i + H/2}) by its angle: the layout in halves of transformers' LLaMA.

    A rotation of query and key alike leaves in their product the difference of their positions
    alone (su2024roformer, eq. 16). Where there are fewer angles than H / 2, the pairs are the first
    numbers' and the rest of the head passes as it is, as in GPT-NeoX.
    """
    cos, sin = turn
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


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
