"""Scaled dot-product attention from its definition: masks, grouped heads, a latent, a cache.

Page: foundations/attention. Papers: vaswani2017attention, eq. (1); shazeer2019fast (one head of
keys and values for all queries); ainslie2023gqa (one for each group); deepseekai2024deepseekv2
(all of them from one latent); jiang2023mistral (a window).
Left out: dropout, and kernels that do not write the scores down (inference/flash_attention).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.normalization import RMSNorm
from llmbook.foundations.positions import Rotation, rotate, rotate_pairs


def attention(
    query: Float[Tensor, "B N T H"],
    key: Float[Tensor, "B K S H"],
    value: Float[Tensor, "B K S H_v"],
    *,
    mask: Bool[Tensor, "*#heads #T S"] | None = None,
    bias: Float[Tensor, "*#heads #T S"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B N T H_v"]:
    """softmax(scale Q K^T + bias) V, scale 1 / sqrt(H) unless given (vaswani2017attention, eq. 1).

    `mask` is true where a query may look; a row that may look nowhere (padding) gets a finite
    output. With K < N, each head of keys and values serves N / K heads of queries
    (ainslie2023gqa, section 2.2). Values may be wider or narrower than keys.

    Raises:
        ValueError: if K does not divide N.
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
    return (weights.view(B, K, -1, S) @ value).view(B, N, T, -1)


def causal_mask(num_queries: int, num_keys: int) -> Bool[Tensor, "T S"]:
    """Which keys each query may see: its own and all before it; the queries are the last tokens.

    >>> causal_mask(2, 4).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 1]]
    """
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)


def prefix_mask(prefix: Bool[Tensor, "B S"], *, num_queries: int) -> Bool[Tensor, "B 1 T S"]:
    """Causal, except that every query may see the whole prefix (raffel2020exploring, figure 4).

    `prefix` is true on its tokens; the queries are the last `num_queries` of all.

    >>> prefix_mask(torch.tensor([[True, True, False, False]]), num_queries=4).int()[0, 0].tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    return causal_mask(num_queries, prefix.shape[1]).to(prefix.device) | prefix[:, None, None, :]


def window_mask(num_queries: int, num_keys: int, *, window: int) -> Bool[Tensor, "T S"]:
    """Causal, and no further back than the last `window` tokens, the query's own among them.

    The count is that of transformers' Mistral. The paper's text lets a query look back W tokens
    beside its own (jiang2023mistral, section 2), its figure W with its own.

    Raises:
        ValueError: if `window` is not positive.

    >>> window_mask(2, 4, window=2).int().tolist()
    [[0, 1, 1, 0], [0, 0, 1, 1]]
    """
    if window < 1:
        raise ValueError(f"window {window} is not positive: a query sees itself at least")
    return causal_mask(num_queries, num_keys).triu(num_keys - num_queries - window + 1)


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
        self, keys: Float[Tensor, "B K T H"], values: Float[Tensor, "B K T H_v"]
    ) -> tuple[Float[Tensor, "B K S H"], Float[Tensor, "B K S H_v"]]:
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


class LatentAttention(nn.Module):
    """Multi-head latent attention: keys and values of all heads from one narrow vector a token.

    deepseekai2024deepseekv2, eq. (9) to (19) and appendix C: C is the width of the latent (their
    d_c), r that of the rotary part (their d_h^R) of which the key is shared by all heads. A
    `query_latent_dim` of 0 leaves queries whole, as DeepSeek-V2-Lite does. The norms are those of
    their code. A `magnitude` lengthens queries and keys, all their numbers and not the turned ones
    alone, as their code does under YaRN.

    Raises:
        ValueError: if `rope_dim` is odd.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        latent_dim: int,
        rope_dim: int,
        query_latent_dim: int = 0,
        magnitude: float = 1.0,
    ) -> None:
        super().__init__()
        D, N, H, C, r = hidden_size, num_heads, head_dim, latent_dim, rope_dim
        if r % 2:
            raise ValueError(f"rope_dim {r} is odd: rotary positions turn pairs")
        narrow = query_latent_dim
        self.sizes, self.scale = (N, H, C, r), magnitude**2 * (H + r) ** -0.5
        self.query_down = nn.Linear(D, narrow, bias=False) if narrow else nn.Identity()
        self.query_norm = RMSNorm(narrow, epsilon=1e-6) if narrow else nn.Identity()
        self.query_up = nn.Linear(narrow or D, N * (H + r), bias=False)
        self.down = nn.Linear(D, C + r, bias=False)
        self.latent_norm = RMSNorm(C, epsilon=1e-6)
        self.key_up = nn.Linear(C, N * H, bias=False)
        self.value_up = nn.Linear(C, N * H, bias=False)
        self.output = nn.Linear(N * H, D, bias=False)

    def queries(
        self, hidden: Float[Tensor, "B T D"], turn: Rotation
    ) -> tuple[Float[Tensor, "B N T H"], Float[Tensor, "B N T r"]]:
        """What each head asks: a part without positions, and a rotated one."""
        N, H, _, r = self.sizes
        rows: Tensor = self.query_up(self.query_norm(self.query_down(hidden)))
        content, turned = rows.unflatten(-1, (N, H + r)).transpose(1, 2).split((H, r), dim=-1)
        return content, rotate_pairs(turned, turn)

    def latents(
        self, hidden: Float[Tensor, "B T D"], turn: Rotation, cache: KVCache | None
    ) -> tuple[Float[Tensor, "B 1 S C"], Float[Tensor, "B 1 S r"]]:
        """All that is kept of a token: its latent and one rotated key, C + r numbers."""
        _, _, C, r = self.sizes
        latent, turned = self.down(hidden)[:, None].split((C, r), dim=-1)  # B 1 T C, B 1 T r
        latent, turned = self.latent_norm(latent), rotate_pairs(turned, turn)
        return (latent, turned) if cache is None else cache.append(latent, turned)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        mask: Bool[Tensor, "*#heads #T S"],
        turn: Rotation,
        bias: Float[Tensor, "*#heads #T S"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Widen the latents to N heads of keys and values, then attend as ever: for training."""
        N, H, _, _ = self.sizes
        latent, turned = self.latents(hidden, turn, cache)
        key, value = (
            widen(latent[:, 0]).unflatten(-1, (N, H)).transpose(1, 2)  # B N S H
            for widen in (self.key_up, self.value_up)
        )
        key = torch.cat((key, turned.expand(-1, N, -1, -1)), dim=-1)  # B N S H+r
        query = torch.cat(self.queries(hidden, turn), dim=-1)  # B N T H+r
        mixed = attention(query, key, value, mask=mask, bias=bias, scale=self.scale)  # B N T H
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def absorbed(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        mask: Bool[Tensor, "*#heads #T S"],
        turn: Rotation,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The same without widening: N queries read the latents themselves, as one shared head.

        q (W c) = (q W) c, so the widening of keys moves into the query, that of values behind
        the mix (deepseekai2024deepseekv2, appendix C).
        """
        N, H, C, _ = self.sizes
        latent, turned = self.latents(hidden, turn, cache)
        content, asked = self.queries(hidden, turn)
        query = torch.cat((content @ self.key_up.weight.view(N, H, C), asked), dim=-1)  # B N T C+r
        key = torch.cat((latent, turned), dim=-1)  # B 1 S C+r
        mixed = attention(query, key, latent, mask=mask, scale=self.scale)  # B N T C
        heads = mixed @ self.value_up.weight.view(N, H, C).mT  # B N T H
        output: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return output
