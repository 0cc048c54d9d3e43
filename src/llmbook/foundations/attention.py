"""Scaled dot-product attention from its definition, grouped heads, masks and a cache.

Page: foundations/attention. Papers: vaswani2017attention, eq. (1); shazeer2019fast (one head of
keys and values for all queries); ainslie2023gqa (one for each group).
Left out: dropout, and kernels that do not write the scores down (inference/flash_attention).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.positions import Rotation, rotate


def attention(
    query: Float[Tensor, "B N T H"],
    key: Float[Tensor, "B K S H"],
    value: Float[Tensor, "B K S H"],
    *,
    mask: Bool[Tensor, "*#heads #T S"] | None = None,
    bias: Float[Tensor, "*#heads #T S"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B N T H"]:
    """softmax(scale Q K^T + bias) V, scale 1 / sqrt(H) unless given (vaswani2017attention, eq. 1).

    `mask` is true where a query may look; a row that may look nowhere (padding) gets a finite
    output. With K < N, each head of keys and values serves N / K heads of queries
    (ainslie2023gqa, section 2.2).
    """
    B, N, T, H = query.shape
    K, S = key.shape[1], key.shape[2]
    if N % K:
        raise ValueError(f"{N} heads of queries are not a multiple of {K} heads of keys")
    # the heads of a group become more rows of one matrix, so that no key is copied for them
    scores = (query.reshape(B, K, -1, H) @ key.mT).view(B, N, T, S)  # B K N/K*T S -> B N T S
    scores = scores * (H**-0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    return (weights.view(B, K, -1, S) @ value).view(B, N, T, H)


def causal_mask(num_queries: int, num_keys: int) -> Bool[Tensor, "T S"]:
    """Which keys each query may see: its own and all before it; the queries are the last tokens.

    >>> causal_mask(2, 4).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 1]]
    """
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)


class KVCache:
    """Keys and values of one layer, kept as they come.

    A decoder knows `append` and `len` alone; a cache that quantizes, forgets or pages has the
    same two.

    >>> cache, token = KVCache(), torch.zeros(1, 8, 1, 128)  # B K T H
    >>> keys, values = cache.append(token, token)
    >>> keys, values = cache.append(token, token)
    >>> len(cache), keys.shape[2]
    (2, 2)
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        """Tokens appended so far."""
        return 0 if self.keys is None else self.keys.shape[2]

    def append(
        self, keys: Float[Tensor, "B K T H"], values: Float[Tensor, "B K T H"]
    ) -> tuple[Float[Tensor, "B K S H"], Float[Tensor, "B K S H"]]:
        """Take the keys and values of new tokens; return those of all tokens so far."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Attention(nn.Module):
    """The four projections around `attention`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, H, N, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
        self.head_dim = H
        self.query = nn.Linear(D, N * H, bias=config.attention_bias)
        self.key = nn.Linear(D, K * H, bias=config.attention_bias)
        self.value = nn.Linear(D, K * H, bias=config.attention_bias)
        self.output = nn.Linear(N * H, D, bias=config.attention_output_bias)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        mask: Bool[Tensor, "B 1 T S"],
        bias: Float[Tensor, "B N T S"] | None = None,
        turn: Rotation | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend from the T tokens given to all S that the cache has seen, these among them."""
        H, rows = self.head_dim, (self.query(hidden), self.key(hidden), self.value(hidden))
        query, key, value = (x.unflatten(-1, (-1, H)).transpose(1, 2) for x in rows)  # B N T H
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = attention(query, key, value, mask=mask, bias=bias)  # B N T H
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output
