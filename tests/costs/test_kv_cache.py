"""Sizes of the cache against printed ones, and the arithmetic of decoding against its laws."""

import random
from pathlib import Path

import pytest
import torch
from formula import expressions

from llmbook.config import ModelConfig
from llmbook.costs.kv_cache import (
    compute_bound_context,
    decode_bytes,
    decode_flops,
    decode_intensity,
    kv_bytes,
    kv_bytes_per_token,
    largest_batch,
    matrix_parameters,
    prefill_flops,
    tokens_run_with_cache,
    tokens_run_without_cache,
    tokens_until_cache_exceeds_weights,
)
from llmbook.costs.parameters import parameter_count
from llmbook.foundations.decoder import Decoder
from llmbook.units import GB, bytes_of
from llmbook.zoo.catalogue import cards, config

PAGE = Path(__file__).parents[2] / "book" / "inference" / "kv_cache.md"

every_card = pytest.mark.parametrize(
    "name", [name for name, card in cards().items() if not card.config.num_experts]
)


def random_config(seed):
    draw = random.Random(seed)
    K, group, H = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 7]), 2 * draw.randint(1, 40)
    return ModelConfig(
        vocab_size=draw.randint(2, 999), hidden_size=draw.randint(2, 99),
        num_layers=draw.randint(1, 9), num_heads=K * group, num_kv_heads=K, head_dim=H,
        max_seq_len=64, tie_embeddings=draw.random() < 0.5,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_a_tensor_s(seed):
    """Keys and values as an array of shape (2, L, B, K, S, H), counted one axis at a time."""
    model, numbers = random_config(seed), 1
    for axis in (2, model.num_layers, 3, model.num_kv_heads, 11, model.head_dim):
        numbers *= axis
    assert kv_bytes(model, batch_size=3, context_len=11, dtype="fp32") == 4 * numbers
    assert kv_bytes(model, batch_size=3, context_len=11, dtype="int8") == numbers
    assert kv_bytes(model, batch_size=1, context_len=1) == kv_bytes_per_token(model)


def test_a_latent_and_one_rotary_key_are_all_that_deepseek_v3_keeps():
    """512 + 64 numbers of 2 bytes in 61 layers, against what 128 whole heads would keep."""
    v3 = config("deepseek-v3")
    assert kv_bytes_per_token(v3) == 61 * (512 + 64) * 2
    whole = v3.but(kv_latent_dim=0, query_latent_dim=0, rope_dim=0)
    assert kv_bytes_per_token(whole) == 61 * 2 * 128 * 128 * 2


def test_grouping_divides_the_cache_and_leaves_the_flops_of_attention():
    """Query heads share: K = N, N / 4 and 1 of the same model (ainslie2023gqa, figure 2)."""
    many = config("llama-2-70b").but(num_kv_heads=64)
    for K in (16, 8, 1):
        few = many.but(num_kv_heads=K)
        assert kv_bytes_per_token(many) == 64 // K * kv_bytes_per_token(few)
        growth = [
            decode_flops(model, batch_size=1, context_len=1001)
            - decode_flops(model, batch_size=1, context_len=1)
            for model in (many, few)
        ]
        assert growth[0] == growth[1] == 1000 * 4 * 80 * 8192


@every_card
def test_the_crossing_is_the_first_token_beyond_the_weights(name):
    model = config(name)
    weights = 2 * parameter_count(model).total
    for batch_size in (1, 7, 512):
        S = tokens_until_cache_exceeds_weights(model, batch_size=batch_size)
        assert kv_bytes(model, batch_size=batch_size, context_len=S) > weights
        assert kv_bytes(model, batch_size=batch_size, context_len=S - 1) <= weights


def test_the_largest_batch_fits_and_one_more_does_not():
    model = config("llama-2-7b")
    batch_size = largest_batch(model, memory_bytes=80 * GB, context_len=4096)
    weights = 2 * parameter_count(model).total
    for B, fits in ((batch_size, True), (batch_size + 1, False)):
        assert (weights + kv_bytes(model, batch_size=B, context_len=4096) <= 80 * GB) is fits
    assert largest_batch(model, memory_bytes=weights, context_len=1) == 0
    with pytest.raises(
        ValueError, match="memory_bytes 10,000,000,000 is less than the 13,476,831,232 bytes"
    ):
        largest_batch(model, memory_bytes=10 * GB, context_len=1)


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2), ("fp8", 1)])
def test_the_format_counts_for_weights_and_cache_alike(dtype, size):
    """Memory of P + 10 S 2 K H L numbers holds ten sequences in any format, and one byte less nine."""
    model, S = config("llama-3-8b"), 4096
    numbers = 8_030_261_248 + 10 * S * 2 * 8 * 128 * 32
    for memory_bytes, batch_size in ((size * numbers, 10), (size * numbers - 1, 9)):
        fits = largest_batch(model, memory_bytes=memory_bytes, context_len=S, dtype=dtype)
        assert fits == batch_size
    read = decode_bytes(model, batch_size=10, context_len=S, dtype=dtype)
    assert size * numbers - read == size * (128_256 * 4096 + 65 * 4096)  # input table, 65 norms


@every_card
def test_matrices_are_those_of_the_decoder_s_linear_layers(name):
    """Built by PyTorch (two layers, nothing allocated); a tied head multiplies by the table."""
    model = config(name).but(num_layers=2)
    with torch.device("meta"):
        decoder = Decoder(model)
    linear = [module for module in decoder.modules() if isinstance(module, torch.nn.Linear)]
    tied = decoder.embedding.weight.numel() if model.tie_embeddings else 0
    assert matrix_parameters(model) == sum(layer.weight.numel() for layer in linear) + tied


def test_what_a_mixture_reads_is_not_guessed():
    with pytest.raises(ValueError, match="num_experts 8: which of them a step reads depends"):
        decode_bytes(config("mixtral-8x7b"), batch_size=1, context_len=0)


@every_card
def test_intensity_of_one_sequence_is_about_one_and_grows_with_the_batch_until_the_cache_rules(
    name,
):
    """In 16 bits 2 P FLOPs meet 2 P bytes; over the cache alone 4 N H meet 4 K H."""
    model = config(name)
    groups = model.num_heads / model.num_kv_heads
    assert decode_intensity(model, batch_size=1, context_len=0) == 1
    assert decode_intensity(model, batch_size=64, context_len=0) == 64
    assert decode_intensity(model, batch_size=64, context_len=10**9) == pytest.approx(
        groups, rel=1e-3
    )
    assert decode_intensity(model, batch_size=64, context_len=10**9, dtype="fp8") == pytest.approx(
        2 * groups, rel=1e-3
    )


@every_card
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_beyond_the_compute_bound_context_no_batch_reaches_the_ridge(name, dtype):
    """With a batch of a thousand million: below the limit it does, above it does not."""
    model = config(name)
    limit = compute_bound_context(model, flops_per_byte=208, dtype=dtype)
    huge = {"batch_size": 10**9, "dtype": dtype}
    assert decode_intensity(model, context_len=limit - 1, **huge) > 208
    assert decode_intensity(model, context_len=limit + 1, **huge) < 208
    cache_alone = 2 * model.num_heads / model.num_kv_heads / bytes_of(dtype)
    with pytest.raises(ValueError, match=f"flops_per_byte {cache_alone:g} is not above"):
        compute_bound_context(model, flops_per_byte=cache_alone, dtype=dtype)
    compute_bound_context(model, flops_per_byte=1.01 * cache_alone, dtype=dtype)


def test_a_prefill_is_the_sum_of_its_steps_and_the_hidden_half():
    """Decoding T tokens one by one forms T (T + 1) / 2 rows of scores, a prefill T²."""
    model, T = config("llama-7b"), 100
    steps = sum(decode_flops(model, batch_size=1, context_len=t) for t in range(1, T + 1))
    hidden = 4 * 32 * 4096 * (T * T - T * (T + 1) // 2)
    assert prefill_flops(model, batch_size=1, prompt_len=T) == steps + hidden


def test_bytes_read_are_weights_once_and_a_cache_for_each_sequence():
    model = config("llama-3-8b")
    one, two = (decode_bytes(model, batch_size=B, context_len=1000) for B in (1, 2))
    assert two - one == kv_bytes(model, batch_size=1, context_len=1000)
    assert decode_bytes(model, batch_size=9, context_len=0) == 2 * matrix_parameters(model)


@pytest.mark.parametrize(("prompt_len", "new_tokens"), [(1, 1), (5, 1), (1, 9), (512, 512)])
def test_tokens_run_are_the_passes_added_up(prompt_len, new_tokens):
    lengths = [prompt_len + step for step in range(new_tokens)]
    assert tokens_run_without_cache(prompt_len=prompt_len, new_tokens=new_tokens) == sum(lengths)
    assert tokens_run_with_cache(prompt_len=prompt_len, new_tokens=new_tokens) == prompt_len + len(
        lengths[1:]
    )


def letters(model, **more):
    """The letters of the notation page, with P the parameters that the formula at hand means."""
    return {
        "L": model.num_layers, "N": model.num_heads, "K": model.num_kv_heads, "H": model.head_dim,
        "P": matrix_parameters(model),
    } | more  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_the_formulas_of_the_page_are_the_functions(seed):
    model, draw = random_config(seed), random.Random(seed + 100)
    B, S, T, n = (draw.randint(1, 99) for _ in range(4))
    batch = {"batch_size": B, "context_len": S}
    page = expressions(PAGE)

    def value(label, **more):
        return eval(page[label], letters(model, B=B, S=S, T=T, n=n) | more)

    run = tokens_run_without_cache(prompt_len=T, new_tokens=n)
    assert value("eq-tokens-without") == run
    assert value("eq-decode-flops") == decode_flops(model, **batch)
    assert value("eq-kv-bytes") == kv_bytes(model, **batch)
    assert value("eq-decode-bytes") == decode_bytes(model, **batch)
    crossing = tokens_until_cache_exceeds_weights(model, batch_size=B)
    whole = parameter_count(model).total
    assert crossing - 1 <= value("eq-crossing", P=whole) < crossing
    rho = model.num_heads / model.num_kv_heads + draw.randint(1, 300)
    limit = compute_bound_context(model, flops_per_byte=rho)
    assert limit - 1e-6 <= value("eq-compute-bound", rho=rho) < limit + 1 + 1e-6
