"""Claims of the page foundations/parameters."""

import random
from pathlib import Path

import pytest
import torch
from formula import expressions
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from llmbook.config import ModelConfig
from llmbook.costs.parameters import parameter_count, rule_of_thumb
from llmbook.published import check, numbers
from llmbook.zoo.catalogue import card, cards

PAGE = Path(__file__).parents[2] / "book" / "foundations" / "parameters.md"


def primes(count: int, *, seed: int) -> list[int]:
    """Distinct primes, so that no product of letters equals another by accident."""
    found = [n for n in range(5, 300) if all(n % d for d in range(2, n))]
    return random.Random(seed).sample(found, count)


@pytest.mark.parametrize("seed", range(20))
def test_the_gpt_formula_of_the_page_is_what_the_library_counts(seed):
    V, T, L, F, H, N = primes(6, seed=seed)
    config = ModelConfig(
        vocab_size=V,
        max_seq_len=T,
        num_layers=L,
        hidden_size=N * H,
        num_heads=N,
        intermediate_size=F,
    )
    letters = {"V": V, "T": T, "L": L, "D": N * H, "F": F}
    assert parameter_count(config).total == eval(expressions(PAGE)["eq-parameters-gpt"], letters)


@pytest.mark.parametrize("seed", range(20))
def test_the_llama_formula_of_the_page_is_what_the_library_counts(seed):
    V, L, F, D, K, groups = primes(6, seed=seed)
    H = 2 * primes(1, seed=seed + 100)[0]
    config = ModelConfig(
        vocab_size=V, max_seq_len=8, num_layers=L, hidden_size=D, num_heads=K * groups,
        num_kv_heads=K, head_dim=H, intermediate_size=F, positions="rotary", norm="rms_norm",
        gated=True, attention_bias=False, attention_output_bias=False, mlp_bias=False,
        tie_embeddings=False,
    )  # fmt: skip
    letters = {"V": V, "L": L, "D": D, "F": F, "N": K * groups, "K": K, "H": H}
    assert parameter_count(config).total == eval(expressions(PAGE)["eq-parameters-llama"], letters)


def test_the_rule_of_thumb_of_the_page_is_the_function():
    config = card("gpt-3-175b").config
    letters = {"L": config.num_layers, "D": config.hidden_size}
    assert rule_of_thumb(config) == eval(expressions(PAGE)["eq-rule-of-thumb"], letters)


def transformers_model(name):
    """The class of `transformers` that the organisation's own config.json names, on the meta device."""
    found = card(name)
    c = found.config
    common = {"vocab_size": c.vocab_size, "hidden_size": c.hidden_size}
    if found.family == "GPT":
        sizes = {"n_layer": c.num_layers, "n_head": c.num_heads, "n_embd": c.hidden_size}
        first = name == "gpt-1"
        kind, model = (
            (OpenAIGPTConfig, OpenAIGPTLMHeadModel) if first else (GPT2Config, GPT2LMHeadModel)
        )
        config = kind(vocab_size=c.vocab_size, n_positions=c.max_seq_len, **sizes)
    elif found.family == "OPT":
        config = OPTConfig(
            **common, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads, ffn_dim=c.intermediate_size,
            max_position_embeddings=c.max_seq_len, word_embed_proj_dim=c.embedding_size,
            do_layer_norm_before=c.norm_placement == "pre",
        )  # fmt: skip
        model = OPTForCausalLM
    elif found.family == "BLOOM":
        config, model = (
            BloomConfig(**common, n_layer=c.num_layers, n_head=c.num_heads),
            BloomForCausalLM,
        )
    elif found.family in ("GPT-NeoX", "Falcon"):
        layers = {"num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads}
        if found.family == "GPT-NeoX":
            config, model = (
                GPTNeoXConfig(**common, **layers, intermediate_size=c.intermediate_size),
                GPTNeoXForCausalLM,
            )
        else:
            config = FalconConfig(
                **common, **layers, num_kv_heads=c.num_kv_heads,
                new_decoder_architecture=1 < c.num_kv_heads < c.num_heads,
                multi_query=c.num_kv_heads == 1, parallel_attn=c.block != "sequential",
                alibi=c.positions == "alibi", bias=c.mlp_bias,
            )  # fmt: skip
            model = FalconForCausalLM
    elif found.family == "StarCoder":
        config = GPTBigCodeConfig(
            vocab_size=c.vocab_size, n_embd=c.hidden_size, n_layer=c.num_layers,
            n_head=c.num_heads, n_positions=c.max_seq_len,
        )  # fmt: skip
        model = GPTBigCodeForCausalLM
    else:
        sizes = {
            "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads, "intermediate_size": c.intermediate_size,
            "tie_word_embeddings": c.tie_embeddings,
        }  # fmt: skip
        if found.family == "Mixtral":
            config = MixtralConfig(
                **common, **sizes, num_local_experts=c.num_experts,
                num_experts_per_tok=c.experts_per_token,
            )  # fmt: skip
            model = MixtralForCausalLM
        elif found.family == "DeepSeek":
            config = DeepseekV3Config(
                **common, **sizes, moe_intermediate_size=c.expert_width,
                n_routed_experts=c.num_experts, n_shared_experts=c.num_shared_experts,
                num_experts_per_tok=c.experts_per_token, first_k_dense_replace=c.num_dense_layers,
                kv_lora_rank=c.kv_latent_dim, q_lora_rank=c.query_latent_dim,
                qk_nope_head_dim=c.head_dim, qk_rope_head_dim=c.rope_dim, v_head_dim=c.head_dim,
            )  # fmt: skip
            model = DeepseekV3ForCausalLM
        elif found.family == "Mistral":
            config, model = MistralConfig(**common, **sizes), MistralForCausalLM
        else:
            config, model = LlamaConfig(**common, **sizes), LlamaForCausalLM
    with torch.device("meta"):
        return model(config)


@pytest.mark.parametrize("name", cards())
def test_every_card_counts_as_many_as_transformers_allocates(name):
    model, count = transformers_model(name), parameter_count(card(name).config)
    # a parameter in DeepSeek's own code and a tensor of its checkpoint, a buffer in this class
    biases = sum(b.numel() for n, b in model.named_buffers() if n.endswith("correction_bias"))
    assert count.total == sum(parameter.numel() for parameter in model.parameters()) + biases
    excluded = model.num_parameters(exclude_embeddings=True) + biases
    assert count.non_embedding == excluded - count.output_head


def test_the_parts_add_up_for_every_card():
    for found in cards().values():
        count = parameter_count(found.config)
        assert count.total == count.embedding + count.output_head + count.non_embedding
        assert count.total == sum(count.by_module.values())


def test_a_token_meets_all_but_the_experts_that_its_router_leaves_out():
    """jiang2024mixtral, abstract: 13B of 47B; without a router, all."""
    for found in cards().values():
        c, count = found.config, parameter_count(found.config)
        width = c.expert_intermediate_size or c.intermediate_size
        expert = 3 * c.hidden_size * width * (c.num_layers - c.num_dense_layers)
        unused = c.num_experts - c.experts_per_token
        assert count.total - count.active == unused * expert
    mixtral = card("mixtral-8x7b").config
    one = parameter_count(mixtral.but(num_experts=2)).total  # as many as a token meets, and all met
    router = mixtral.num_layers * mixtral.hidden_size * (mixtral.num_experts - 2)
    assert parameter_count(mixtral).active == one + router


def test_untying_the_head_adds_one_table():
    config = card("gpt2").config
    grown = parameter_count(config.but(tie_embeddings=False)).total - parameter_count(config).total
    assert grown == config.vocab_size * config.hidden_size


def printed_counts():
    """Every count that a paper, a README or a card printed, by its id."""
    rooms = ("parameters.", "decoder.parameters.", "mixture_of_experts.parameters.")
    return {id: number for id, number in numbers().items() if id.startswith(rooms)}


@pytest.mark.parametrize("id", printed_counts())
def test_every_printed_count_is_met_and_every_misprint_is_not(id):
    name, place = id.split("parameters.")[1].rsplit(".", 1)
    count = parameter_count(card(name).config)
    parts = {
        "embedding": count.embedding, "active": count.active,
        "active-but-input-table": count.active - count.embedding,
    }  # fmt: skip
    check(next((n for part, n in parts.items() if place.endswith(part)), count.total), id)


def test_most_cards_are_held_to_a_printed_count():
    """A card that only meets itself may be wrong; these are the ones whose count nobody printed in full."""
    held = {id.split("parameters.")[1].rsplit(".", 1)[0] for id in printed_counts()}
    twins = {
        "llama-2-7b": "llama-7b",
        "llama-2-13b": "llama-13b",
        "llama-3.1-8b": "llama-3-8b",
        "llama-3.1-70b": "llama-3-70b",
    }
    for ours, theirs in twins.items():
        assert parameter_count(card(ours).config) == parameter_count(card(theirs).config)
    unprinted = {
        "bloom-1b7", "gpt-2-xl", "llama-3-70b", "gpt-1", "falcon-7b", "falcon-40b", "falcon-rw-1b",
        "mistral-7b-v0.1",
    }  # fmt: skip
    assert set(cards()) - held - set(twins) == unprinted


# Table 2.1 of brown2020language prints d_head; XL is left out, whose 24 heads of 128 do not fit its width of 2,048.
HEAD_WIDTHS = {
    "small": 64,
    "medium": 64,
    "large": 96,
    "2.7b": 80,
    "6.7b": 128,
    "13b": 128,
    "175b": 128,
}


@pytest.mark.parametrize(("size", "width"), HEAD_WIDTHS.items())
def test_heads_of_gpt_3_are_as_wide_as_table_2_1_prints(size, width):
    assert card(f"gpt-3-{size}").config.head_dim == width


def test_heads_of_gpt_2_are_those_of_the_released_hparams():
    heads = {"gpt-2-small": 12, "gpt-2-medium": 16, "gpt-2-large": 20, "gpt-2-xl": 25}
    assert {name: card(name).config.num_heads for name in heads} == heads


@pytest.mark.parametrize("gated", [False, True])
def test_each_bias_adds_one_number_for_each_output(gated):
    bare = ModelConfig(
        vocab_size=31, hidden_size=12, num_layers=5, num_heads=6, num_kv_heads=2, head_dim=4, intermediate_size=17,
        max_seq_len=7, gated=gated, attention_bias=False, attention_output_bias=False, mlp_bias=False,
    )  # fmt: skip
    outputs = {
        "attention_bias": 6 * 4 + 2 * 2 * 4,
        "attention_output_bias": 12,
        "mlp_bias": (2 if gated else 1) * 17 + 12,
    }
    for bias, added in outputs.items():
        grown = parameter_count(bare.but(**{bias: True})).total - parameter_count(bare).total
        assert grown == bare.num_layers * added, bias


def test_a_narrow_table_needs_two_projections_and_narrows_the_head():
    wide = ModelConfig(
        vocab_size=31,
        hidden_size=12,
        num_layers=2,
        num_heads=3,
        max_seq_len=7,
        tie_embeddings=False,
    )
    narrow = parameter_count(wide.but(embedding_size=5))
    assert narrow.output_head == 31 * 5
    assert narrow.embedding == 31 * 5 + 7 * 12
    assert narrow.non_embedding == parameter_count(wide).non_embedding + 2 * 5 * 12
