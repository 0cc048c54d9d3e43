"""Decoding with and without a cache of keys and values: the same logits, far fewer tokens run.

Page: inference/kv_cache. Papers: shazeer2019fast, section 2.4; pope2023efficiently, section 2.
The cache itself is `foundations.attention.KVCache`; what it costs stands in `costs.kv_cache`.
Left out: the choice of the next token (foundations/language_modelling), and caches that quantize,
forget or page.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmbook.foundations.attention import KVCache
from llmbook.foundations.decoder import Decoder


def empty_caches(decoder: Decoder) -> list[KVCache]:
    """One cache for each layer, with nothing in it."""
    return [KVCache() for _ in decoder.layers]


def prefill(
    decoder: Decoder, prompt: Int[Tensor, "B T"], caches: Sequence[KVCache]
) -> Float[Tensor, "B V"]:
    """Run the prompt in one pass into the caches; return the logits of the token that follows."""
    logits: Tensor = decoder(prompt, caches=caches)
    return logits[:, -1]


def decode_step(
    decoder: Decoder, token: Int[Tensor, " B"], caches: Sequence[KVCache]
) -> Float[Tensor, "B V"]:
    """Run one token of each sequence against all before it, and return the logits of the next."""
    return prefill(decoder, token[:, None], caches)


@torch.no_grad()
def logits_with_cache(
    decoder: Decoder, tokens: Int[Tensor, "B T"], *, prompt_len: int
) -> Float[Tensor, "B steps V"]:
    """Logits after the prompt and each later token but the last: a prefill, then steps.

    The tokens are given, not sampled, so that the result can be compared with
    `logits_without_cache`.
    """
    caches = empty_caches(decoder)
    steps = [prefill(decoder, tokens[:, :prompt_len], caches)]
    later = range(prompt_len, tokens.shape[1] - 1)
    steps += [decode_step(decoder, tokens[:, t], caches) for t in later]
    return torch.stack(steps, dim=1)


@torch.no_grad()
def logits_without_cache(
    decoder: Decoder, tokens: Int[Tensor, "B T"], *, prompt_len: int
) -> Float[Tensor, "B steps V"]:
    """The same logits, each from a pass over all tokens before it."""
    steps = [decoder(tokens[:, :t])[:, -1] for t in range(prompt_len, tokens.shape[1])]
    return torch.stack(steps, dim=1)


def bytes_held(caches: Sequence[KVCache]) -> int:
    """Bytes of all tensors in the caches."""
    held = [
        tensor for cache in caches for tensor in (cache.keys, cache.values) if tensor is not None
    ]
    return sum(tensor.nbytes for tensor in held)
