"""LLaMA against transformers: the same weights give the same logits."""

import math
import random
from pathlib import Path

import pytest
import torch
from formula import expressions
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llmbook.config import ModelConfig
from llmbook.config.modules import modules
from llmbook.foundations.attention import KVCache
from llmbook.foundations.decoder import Decoder
from llmbook.zoo.catalogue import cards
from llmbook.zoo.llama import (
    feed_forward_width,
    load_from_transformers,
    transformers_config,
    transformers_name,
)

FAMILY = {"positions": "rotary", "norm": "rms_norm", "activation": "silu", "gated": True}
BARE = {
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "tie_embeddings": False,
}
# Between them, every optional field of the family takes two values at least.
MODELS = {
    "as LLaMA": ModelConfig(
        **FAMILY, **BARE, vocab_size=97, hidden_size=48, num_layers=2, num_heads=4,
        intermediate_size=80, max_seq_len=64, norm_epsilon=1e-6,
    ),
    "grouped, wide heads, tied, all biases": ModelConfig(
        **FAMILY, vocab_size=101, hidden_size=42, num_layers=3, num_heads=6, num_kv_heads=2,
        head_dim=12, intermediate_size=72, max_seq_len=128, rope_theta=500_000.0, norm_epsilon=1e-2,
        attention_bias=True, attention_output_bias=True, mlp_bias=True, tie_embeddings=True,
    ),
    "one head of keys, stretched positions": ModelConfig(
        **FAMILY, **BARE | {"mlp_bias": True, "tie_embeddings": True}, vocab_size=89,
        hidden_size=64, num_layers=1, num_heads=8, num_kv_heads=1, intermediate_size=51,
        max_seq_len=256, rope_theta=1000.0, rope_factor=8.0, rope_trained_len=80,
    ),
}  # fmt: skip


def pair(config, dtype=torch.float32):
    """The same random weights in both models; large enough for attention to be sharp."""
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**transformers_config(config))).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.2)
    ours = load_from_transformers(Decoder(config), theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def padded_batch(config, T=20, padding=7):
    tokens = torch.randint(config.vocab_size, (2, T), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones(2, T, dtype=torch.bool)
    attention_mask[0, :padding] = False
    positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(
        ~attention_mask, 1
    )  # as generate() does
    return tokens, attention_mask, positions


def assert_same(ours, theirs, real, digits=2e-5):
    """Equal on real tokens, relative to the spread of the logits."""
    assert theirs[real].std() > 0.5
    assert (ours - theirs)[real].abs().max() < digits * theirs[real].std()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_transformers_in_one_pass(name):
    ours, theirs = pair(MODELS[name])
    tokens, mask, positions = padded_batch(MODELS[name])
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=positions).logits
    assert_same(ours(tokens, attention_mask=mask), expected, mask)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_transformers_through_both_caches(name):
    """A prompt of 12 tokens, then 1, 1, 4 and 2 more, each chunk against transformers' own."""
    ours, theirs = pair(MODELS[name])
    tokens, mask, positions = padded_batch(MODELS[name])
    caches, their_cache = [KVCache() for _ in ours.layers], None
    for start, stop in ((0, 12), (12, 13), (13, 14), (14, 18), (18, 20)):
        chunk, seen = tokens[:, start:stop], mask[:, :stop]
        result = theirs(
            chunk, attention_mask=seen.long(), position_ids=positions[:, start:stop],
            past_key_values=their_cache, use_cache=True,
        )  # fmt: skip
        their_cache = result.past_key_values
        logits = ours(chunk, caches=caches, attention_mask=seen)
        assert_same(logits, result.logits, mask[:, start:stop])
        for cache, layer in zip(caches, their_cache.layers, strict=True):
            assert cache.keys.shape == layer.keys.shape
            torch.testing.assert_close(cache.keys[1], layer.keys[1], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_loss_gradients_equal_transformers():
    ours, theirs = pair(MODELS["grouped, wide heads, tied, all biases"], torch.float64)
    tokens, *_ = padded_batch(ours.config)
    with torch.enable_grad():
        theirs(tokens).logits.logsumexp(-1).sum().backward()
        ours(tokens).logsumexp(-1).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        grad = expected[transformers_name(name)].grad
        torch.testing.assert_close(
            weight.grad, grad, atol=1e-4 * grad.abs().max().item(), rtol=1e-4, msg=name
        )


@pytest.mark.parametrize("name", [name for name, card in cards().items() if card.family == "LLaMA"])
def test_every_card_has_transformers_shapes(name):
    """All weights of the real size, on the meta device, by name and shape."""
    config = cards()[name].config
    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(**transformers_config(config) | {"num_hidden_layers": 1})
        )
    expected = {name: tuple(weight.shape) for name, weight in theirs.named_parameters()}
    ours = {}
    for module in modules(config):
        for kind, shape in zip(("weight", "bias"), module.weights, strict=False):
            ours[transformers_name(f"{module.name.replace('*', '0')}.{kind}")] = shape
    assert ours == expected


@pytest.mark.parametrize("name", ["as LLaMA", "grouped, wide heads, tied, all biases"])
def test_a_file_saved_by_transformers_loads(name, tmp_path):
    ours, theirs = pair(MODELS[name])
    theirs.save_pretrained(tmp_path)
    loaded = load_from_transformers(
        Decoder(MODELS[name]), load_file(tmp_path / "model.safetensors")
    )
    for key, weight in ours.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key]), key


def test_what_no_shape_shows_is_as_released():
    """Blocks, context, epsilon, theta and stretch: papers' tables and the released config.json."""
    first, second = (2048, 1e-6, 1e4, 1), (4096, 1e-5, 1e4, 1)
    third, longer = (8192, 1e-5, 5e5, 1), (131_072, 1e-5, 5e5, 8)
    released = {
        "llama-7b": (32, *first), "llama-13b": (40, *first), "llama-33b": (60, *first),
        "llama-65b": (80, *first), "llama-2-7b": (32, *second), "llama-2-13b": (40, *second),
        "llama-2-70b": (80, *second), "llama-3-8b": (32, *third), "llama-3-70b": (80, *third),
        "llama-3.1-8b": (32, *longer), "llama-3.1-70b": (80, *longer),
        "llama-3.1-405b": (126, *longer), "llama-3.2-1b": (16, *longer[:3], 32),
        "llama-3.2-3b": (28, *longer[:3], 32),
    }  # fmt: skip
    found = {
        name: (c.num_layers, c.max_seq_len, c.norm_epsilon, c.rope_theta, c.rope_factor)
        for name, card in cards().items()
        if card.family == "LLaMA" and (c := card.config)
    }
    assert found == released


def test_widths_of_all_releases():
    """`multiple_of` and `ffn_dim_multiplier` as the releases have them, F as the cards do."""
    plain = "llama-7b llama-13b llama-33b llama-65b llama-2-7b llama-2-13b llama-3.2-3b"
    rules = dict.fromkeys(plain.split(), (256, 1.0)) | {
        "llama-2-70b": (4096, 1.3), "llama-3-8b": (1024, 1.3), "llama-3-70b": (4096, 1.3),
        "llama-3.1-8b": (1024, 1.3), "llama-3.1-70b": (4096, 1.3), "llama-3.1-405b": (4096, 1.2),
        "llama-3.2-1b": (256, 1.5),
    }  # fmt: skip
    assert set(rules) == {name for name, card in cards().items() if card.family == "LLaMA"}
    for name, (multiple_of, multiplier) in rules.items():
        config = cards()[name].config
        width = feed_forward_width(
            config.hidden_size, multiple_of=multiple_of, multiplier=multiplier
        )
        assert width == config.intermediate_size, name


def test_the_width_of_the_page_is_the_function_before_rounding():
    page = expressions(Path(__file__).parents[2] / "book" / "zoo" / "llama.md")
    for D in random.Random(0).sample(range(1, 20_000), 50):
        expected = eval(page["eq-swiglu-width"], {"D": D, "floor": math.floor})
        assert feed_forward_width(D, multiple_of=1) == expected
        assert feed_forward_width(D) == 256 * math.ceil(expected / 256)
    assert feed_forward_width(64, multiple_of=1, multiplier=1.5) == 255  # 1.5 x 170, not 170.67


def test_weights_of_another_model_are_refused():
    config = MODELS["as LLaMA"]
    ours, theirs = pair(config)
    state = theirs.state_dict()
    with pytest.raises(ValueError, match="stand in one of the two models alone"):
        load_from_transformers(ours, state | {"model.layers.2.mlp.up_proj.weight": torch.zeros(1)})
    tied = Decoder(config.but(tie_embeddings=True))
    with pytest.raises(ValueError, match=r"weights lm_head\.weight stand in one"):
        load_from_transformers(tied, state)
    state.pop("lm_head.weight")
    with pytest.raises(ValueError, match=r"weights lm_head\.weight stand in one"):
        load_from_transformers(ours, state)
    with pytest.raises(ValueError, match="positions 'learned' is not LLaMA's 'rotary'"):
        transformers_config(config.but(positions="learned"))
    with pytest.raises(ValueError, match="is none of LLaMA's"):
        transformers_name("positions.weight")
