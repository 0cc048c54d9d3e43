"""What the cache of keys and values costs: its bytes, and what a decoding step reads and computes.

Page: inference/kv_cache. Papers: shazeer2019fast, pope2023efficiently, ainslie2023gqa.
Left out: time (inference/latency); quantized and windowed caches; the half of a
prefill's scores that the mask hides, which plain attention computes and throws away.
"""

from __future__ import annotations

from math import prod

from llmbook.config import ModelConfig
from llmbook.config.modules import modules
from llmbook.costs.parameters import parameter_count
from llmbook.units import bytes_of


def kv_bytes_per_token(config: ModelConfig, *, dtype: str = "bf16") -> int:
    """Bytes that a token leaves in all caches: 2 K H L numbers (pope2023efficiently, section 2).

    The 2 counts a key and a value; N, the heads of queries, does not occur. Latent attention keeps
    (C + r) L numbers instead (deepseekai2024deepseekv2, section 2.1.3).

    >>> wide = ModelConfig(
    ...     vocab_size=32_000, hidden_size=4096, num_layers=32, num_heads=32, max_seq_len=2048
    ... )
    >>> kv_bytes_per_token(wide), kv_bytes_per_token(wide.but(num_kv_heads=8))
    (524288, 131072)
    """
    per_layer = config.kv_latent_dim + config.rope_dim or 2 * config.num_kv_heads * config.head_dim
    return per_layer * config.num_layers * bytes_of(dtype)


def kv_bytes(config: ModelConfig, *, batch_size: int, context_len: int, dtype: str = "bf16") -> int:
    """Bytes of the caches of B sequences with `context_len` tokens each: B S 2 K H L numbers."""
    return batch_size * context_len * kv_bytes_per_token(config, dtype=dtype)


def largest_batch(
    config: ModelConfig, *, memory_bytes: int, context_len: int, dtype: str = "bf16"
) -> int:
    """How many sequences of `context_len` tokens fit beside the weights, both in `dtype`.

    Assumes that nothing else takes memory: a server leaves some percent for activations.

    Raises:
        ValueError: if the weights alone do not fit.
    """
    weights = parameter_count(config).total * bytes_of(dtype)
    if weights > memory_bytes:
        raise ValueError(
            f"memory_bytes {memory_bytes:,} is less than the {weights:,} bytes of the weights"
        )
    return (memory_bytes - weights) // kv_bytes(
        config, batch_size=1, context_len=context_len, dtype=dtype
    )


def tokens_until_cache_exceeds_weights(config: ModelConfig, *, batch_size: int = 1) -> int:
    """Tokens per sequence at which the cache is first larger than the model: over P / (2 K H L B).

    The dtype cancels where weights and cache have the same.
    """
    per_token = batch_size * kv_bytes_per_token(config) // bytes_of("bf16")
    return parameter_count(config).total // per_token + 1


def matrix_parameters(config: ModelConfig) -> int:
    """The weights that every token is multiplied by: all matrices, of the tables a tied head alone.

    A decoding step reads each of them once, whatever the batch. Left out are norms and biases,
    and the rows that are looked up in a table: 1 in 25,000 of what is read in LLaMA-7B.

    Raises:
        ValueError: for a mixture of experts, whose step reads those that its batch happens to choose.
    """
    if config.num_experts:
        raise ValueError(
            f"num_experts {config.num_experts}: which of them a step reads depends on its tokens"
        )
    looked_up = config.vocab_size * config.embedding_size if config.tie_embeddings else 0
    return looked_up + sum(
        module.copies * prod(shape)
        for module in modules(config)
        if module.part != "embedding"
        for shape in module.weights
        if len(shape) == 2
    )


def decode_flops(config: ModelConfig, *, batch_size: int, context_len: int) -> int:
    """FLOPs of one decoding step: B (2 P + 4 L N H S), P the matrices' parameters.

    A multiplication and an addition count as two. Each of the N heads of a layer forms S products
    of width H for the scores and as many for the mix of values, so fewer heads of keys save no
    FLOPs.
    """
    scores_and_mix = 4 * config.num_layers * config.num_heads * config.head_dim * context_len
    return batch_size * (2 * matrix_parameters(config) + scores_and_mix)


def prefill_flops(config: ModelConfig, *, batch_size: int, prompt_len: int) -> int:
    """FLOPs of a prompt in one pass, with the logits of all its tokens: B T (2 P + 4 L N H T).

    All T² scores of a head are counted, those that the mask hides too.
    """
    return prompt_len * decode_flops(config, batch_size=batch_size, context_len=prompt_len)


def decode_bytes(
    config: ModelConfig, *, batch_size: int, context_len: int, dtype: str = "bf16"
) -> int:
    """Bytes that one decoding step reads: each matrix once, each sequence's cache."""
    cache = kv_bytes(config, batch_size=batch_size, context_len=context_len, dtype=dtype)
    return matrix_parameters(config) * bytes_of(dtype) + cache


def decode_intensity(
    config: ModelConfig, *, batch_size: int, context_len: int, dtype: str = "bf16"
) -> float:
    """FLOPs per byte read in one decoding step.

    At short contexts it is about B (2 P FLOPs and 2 P bytes, in 16 bits); as B S grows it sinks
    towards 2 N / K / bytes, the intensity of attention over the cache, whatever the batch.
    """
    flops = decode_flops(config, batch_size=batch_size, context_len=context_len)
    return flops / decode_bytes(config, batch_size=batch_size, context_len=context_len, dtype=dtype)


def compute_bound_context(
    config: ModelConfig, *, flops_per_byte: float, dtype: str = "bf16"
) -> int:
    """Longest context at which a batch, however large, lets a step do `flops_per_byte`.

    As B grows the weights no longer count, and (2 P + 4 L N H S) / (2 K H L S w) is left, with w
    bytes a number; it reaches r at S = P / (L H (w K r - 2 N)). Beyond that, reading caches is
    the limit for every batch.

    Raises:
        ValueError: if attention over the cache alone does as many: then no context is too long.
    """
    N, K, w = config.num_heads, config.num_kv_heads, bytes_of(dtype)
    if w * K * flops_per_byte <= 2 * N:
        raise ValueError(
            f"flops_per_byte {flops_per_byte:g} is not above {2 * N / (w * K):g}, "
            "which attention over the cache does at any context"
        )
    per_token = config.num_layers * config.head_dim * (w * K * flops_per_byte - 2 * N)
    return int(matrix_parameters(config) // per_token)


def tokens_run_with_cache(*, prompt_len: int, new_tokens: int) -> int:
    """Tokens run to make `new_tokens`: the prompt, then each new one but the last.

    >>> tokens_run_with_cache(prompt_len=512, new_tokens=512)
    1023
    """
    return prompt_len + new_tokens - 1


def tokens_run_without_cache(*, prompt_len: int, new_tokens: int) -> int:
    """Tokens run to make n new ones where each step runs all so far: n (2 T + n - 1) / 2.

    >>> tokens_run_without_cache(prompt_len=512, new_tokens=512)
    392960
    """
    return new_tokens * (2 * prompt_len + new_tokens - 1) // 2
