"""Decoding with the cache gives the logits of decoding without, at the cost that formulas say."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from llmbook.config import ModelConfig
from llmbook.costs.kv_cache import (
    decode_flops,
    kv_bytes,
    matrix_parameters,
    prefill_flops,
    tokens_run_with_cache,
    tokens_run_without_cache,
)
from llmbook.foundations.attention import KVCache
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.inference.kv_cache import (
    bytes_held,
    decode_step,
    empty_caches,
    logits_with_cache,
    logits_without_cache,
    prefill,
)
from llmbook.zoo.llama import transformers_config

LLAMA = ModelConfig(
    vocab_size=61, hidden_size=48, num_layers=3, num_heads=6, num_kv_heads=2, intermediate_size=70,
    max_seq_len=64, positions="rotary", norm="rms_norm", activation="silu", gated=True,
    attention_bias=False, attention_output_bias=False, mlp_bias=False, tie_embeddings=False,
)  # fmt: skip
GPT = ModelConfig(vocab_size=61, hidden_size=48, num_layers=3, num_heads=6, max_seq_len=64)
MODELS = {
    "llama": LLAMA,
    "one head of keys": LLAMA.but(num_kv_heads=1, tie_embeddings=True),
    "gpt": GPT,
    "bloom": GPT.but(positions="alibi", embedding_norm=True),
    "opt-350m": GPT.but(norm_placement="post", final_norm=False, embedding_size=20),
}
every_model = pytest.mark.parametrize("name", MODELS)


def model(name, dtype=torch.float32):
    return initialise(
        Decoder(MODELS[name]), generator=torch.Generator().manual_seed(0), std=0.2
    ).to(dtype)


def tokens(B=2, T=24):
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(1))


@every_model
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_cache_changes_no_logit(name, dtype, digits):
    decoder = model(name, dtype)
    expected = logits_without_cache(decoder, tokens(), prompt_len=5)
    cached = logits_with_cache(decoder, tokens(), prompt_len=5)
    assert cached.shape == expected.shape == (2, 19, 61)
    assert (cached - expected).abs().max() < digits * expected.abs().max()
    whole = decoder(tokens())[:, 4:-1]  # the causal mask: one pass over all tokens says the same
    assert (whole - expected).abs().max() < digits * expected.abs().max()


def counted(function, *arguments, **keywords):
    """FLOPs of matrix products that PyTorch's own counter sees in a call."""
    with FlopCounterMode(display=False) as counter:
        function(*arguments, **keywords)
    return counter.get_total_flops()


@every_model
@torch.no_grad()
def test_flops_of_prefill_and_of_each_step_are_those_counted(name):
    decoder, config, caches = model(name), MODELS[name], empty_caches(model(name))
    assert counted(prefill, decoder, tokens(T=7), caches) == prefill_flops(
        config, batch_size=2, prompt_len=7
    )
    for context_len in (8, 9, 10):
        step = counted(decode_step, decoder, tokens()[:, context_len], caches)
        assert step == decode_flops(config, batch_size=2, context_len=context_len)


@every_model
def test_tokens_run_are_those_counted(name):
    """The first layer's query projection sees every token that passes through the model."""
    decoder, seen = model(name), []
    decoder.layers[0].attention.query.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].shape[1])
    )
    logits_with_cache(decoder, tokens(), prompt_len=5)
    assert sum(seen) == tokens_run_with_cache(prompt_len=5, new_tokens=19)
    seen.clear()
    logits_without_cache(decoder, tokens(), prompt_len=5)
    assert sum(seen) == tokens_run_without_cache(prompt_len=5, new_tokens=19)


@every_model
@pytest.mark.parametrize(
    ("dtype", "name_of_dtype"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")]
)
@torch.no_grad()
def test_bytes_held_are_those_of_the_formula(name, dtype, name_of_dtype):
    decoder = model(name, dtype)
    caches = empty_caches(decoder)
    assert bytes_held(caches) == 0
    for T in (5, 1, 1):
        prefill(decoder, tokens(B=3, T=T), caches)
    assert bytes_held(caches) == kv_bytes(
        MODELS[name], batch_size=3, context_len=7, dtype=name_of_dtype
    )


def test_bytes_held_count_keys_and_values_apart():
    """A latent cache keeps wide "keys" and narrow "values" (deepseekai2024deepseekv2, eq. 9, 15)."""
    cache = KVCache()
    cache.append(torch.zeros(2, 1, 5, 16), torch.zeros(2, 1, 5, 4))
    assert bytes_held([cache, KVCache()]) == 2 * 5 * (16 + 4) * 4


@torch.no_grad()
def test_transformers_holds_as_many_bytes():
    theirs = LlamaForCausalLM(LlamaConfig(**transformers_config(LLAMA)))
    cache = DynamicCache(config=theirs.config)
    theirs(tokens(B=3, T=7), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == kv_bytes(LLAMA, batch_size=3, context_len=7, dtype="fp32")


@every_model
@torch.no_grad()
def test_matrices_of_a_step_are_those_that_the_formula_counts(name):
    """FLOPs beyond attention: 2 for each weight and token, counted with a context of one token."""
    decoder, config = model(name), MODELS[name]
    attention = 4 * config.num_layers * config.num_heads * config.head_dim
    flops = counted(decoder, tokens(B=1, T=1))
    assert flops - attention == 2 * matrix_parameters(config)


@torch.no_grad()
def test_a_cache_of_another_make_is_handed_in():
    """The decoder knows `append` and `len` alone: here a cache that keeps 16-bit numbers."""

    class HalfCache(KVCache):
        def append(self, keys, values):
            kept = super().append(keys.bfloat16(), values.bfloat16())
            return tuple(tensor.to(keys.dtype) for tensor in kept)

    decoder = model("llama")
    caches = [HalfCache() for _ in decoder.layers]
    prefill(decoder, tokens()[:, :10], caches)
    ours = decode_step(decoder, tokens()[:, 10], caches)
    exact = decoder(tokens()[:, :11])[:, -1]
    assert bytes_held(caches) == kv_bytes(LLAMA, batch_size=2, context_len=11, dtype="bf16")
    assert 1e-4 < (ours - exact).abs().max() / exact.std() < 0.1
