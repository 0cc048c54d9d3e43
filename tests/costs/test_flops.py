"""FLOPs against PyTorch's own counter, printed formulas, and laws."""

import random
from pathlib import Path

import pytest
import torch
from formula import expressions
from torch.utils.flop_counter import FlopCounterMode

from llmbook.config import ModelConfig
from llmbook.costs.flops import attended_pairs, forward_flops, training_flops, utilization
from llmbook.costs.kv_cache import decode_flops, prefill_flops
from llmbook.foundations.decoder import Decoder
from llmbook.zoo.catalogue import cards, config

PAGE = Path(__file__).parents[2] / "book" / "foundations" / "flops.md"


def random_config(seed):
    draw = random.Random(seed)
    K, group, H = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 7]), 2 * draw.randint(1, 20)
    D = draw.randint(2, 99)
    return ModelConfig(
        vocab_size=draw.randint(2, 999), hidden_size=D, num_layers=draw.randint(1, 5),
        num_heads=K * group, num_kv_heads=K, head_dim=H, intermediate_size=draw.randint(2, 99),
        max_seq_len=64, gated=draw.random() < 0.5, tie_embeddings=draw.random() < 0.5,
        positions=draw.choice(["learned", "rotary", "alibi"]),
        embedding_size=draw.choice([D, 2 * D]),
    )  # fmt: skip


def counted(model, *, batch_size, seq_len, backward):
    """What PyTorch counts on the meta device, where nothing is computed."""
    with torch.device("meta"):
        decoder = Decoder(model)
        tokens = torch.zeros(batch_size, seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = decoder(tokens)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_models_cost_what_pytorch_counts(seed, backward):
    model, size = random_config(seed), {"batch_size": 3, "seq_len": 7 + seed}
    ours = training_flops(model, **size) if backward else forward_flops(model, **size).total
    assert ours == counted(model, **size, backward=backward)


@pytest.mark.parametrize("name", ["gpt-2-xl", "opt-350m", "bloom-560m", "llama-7b", "llama-3-8b"])
def test_cards_cost_what_pytorch_counts_forward_and_backward(name):
    size = {"batch_size": 1, "seq_len": 1024}
    assert forward_flops(config(name), **size).total == counted(
        config(name), **size, backward=False
    )
    assert training_flops(config(name), **size) == counted(config(name), **size, backward=True)


def test_the_page_s_formula_is_what_is_counted_for_llama():
    for seed in range(20):
        draw = random.Random(seed)
        K, group, H = draw.choice([1, 2, 3]), draw.choice([1, 5]), 2 * draw.randint(1, 40)
        letters = {letter: draw.randint(2, 97) for letter in "BTLDFV"}
        model = ModelConfig(
            vocab_size=letters["V"], hidden_size=letters["D"], num_layers=letters["L"],
            num_heads=K * group, num_kv_heads=K, head_dim=H, intermediate_size=letters["F"],
            max_seq_len=128, positions="rotary", gated=True, tie_embeddings=False,
        )  # fmt: skip
        letters |= {"N": K * group, "K": K, "H": H, "S": letters["T"]}
        ours = forward_flops(model, batch_size=letters["B"], seq_len=letters["T"]).total
        assert ours == eval(expressions(PAGE)["eq-flops-forward"], letters)


@pytest.mark.parametrize("seed", range(10))
def test_full_recomputation_is_equation_3_of_megatron(seed):
    """narayanan2021efficient, eq. (3): 96 B s l h² (1 + s / 6h + V / 16 l h), for F = 4 D, K = N."""
    draw = random.Random(seed)
    N, H = draw.randint(1, 9), 2 * draw.randint(1, 9)
    B, T, L, V = (draw.randint(1, 50) for _ in range(4))
    model = ModelConfig(
        vocab_size=V,
        hidden_size=N * H,
        num_layers=L,
        num_heads=N,
        max_seq_len=64,
        positions="alibi",
    )
    ours = training_flops(model, batch_size=B, seq_len=T, recomputation="full")
    letters = {"B": B, "T": T, "L": L, "D": N * H, "V": V}
    assert ours == pytest.approx(eval(expressions(PAGE)["eq-flops-megatron"], letters), rel=1e-12)


def test_selective_recomputation_repeats_scores_and_mix_alone():
    """korthikanti2022reducing, appendix A: 4 B s² h beside 72 B s h² a layer, so about s / 18 h."""
    size = {"seq_len": 2048}
    plain = training_flops(config("gpt-3-175b"), **size)
    selective = training_flops(config("gpt-3-175b"), **size, recomputation="selective")
    forward = forward_flops(config("gpt-3-175b"), **size)
    assert selective - plain == forward.attention
    # the head and attention itself are in the step too, which makes the share 3 % smaller
    assert selective / plain - 1 == pytest.approx(2048 / (18 * 12_288), rel=0.04)


@pytest.mark.parametrize("seed", range(8))
def test_causal_pairs_are_those_that_a_mask_leaves(seed):
    draw = random.Random(seed)
    S = draw.randint(1, 40)
    T, window = draw.randint(1, S), draw.choice([0, 1, 5, 50])
    queries, keys = torch.arange(S - T, S)[:, None], torch.arange(S)[None]
    seen = (keys <= queries) & (keys > queries - (window or S))
    pairs = attended_pairs(seq_len=T, context_len=S, attention="causal", sliding_window=window)
    assert pairs == int(seen.sum())


@pytest.mark.parametrize("name", cards())
def test_tokens_one_by_one_cost_the_causal_half_of_a_prompt(name):
    """A step with a cache looks at what is there: their sum is the causal count of one pass."""
    steps = sum(forward_flops(config(name), seq_len=1, context_len=S).total for S in range(1, 18))
    assert steps == forward_flops(config(name), seq_len=17, attention="causal").total


@pytest.mark.parametrize("name", [name for name, c in cards().items() if not c.config.num_experts])
def test_a_step_and_a_prompt_cost_what_the_formulas_of_the_cache_page_say(name):
    """B (2 P + 4 L N H S) and B T (2 P + 4 L N H T), written down there without the modules' names."""
    step = forward_flops(config(name), batch_size=3, seq_len=1, context_len=777)
    assert step.total == decode_flops(config(name), batch_size=3, context_len=777)
    prompt = forward_flops(config(name), batch_size=3, seq_len=99)
    assert prompt.total == prefill_flops(config(name), batch_size=3, prompt_len=99)


def test_experts_cost_what_the_chosen_ones_cost():
    dense = random_config(3)
    mixed = dense.but(num_experts=8, experts_per_token=2)
    router = 2 * dense.num_layers * dense.hidden_size * 8
    mlp = sum(n for name, n in forward_flops(dense, seq_len=1).by_module.items() if ".mlp." in name)
    extra = forward_flops(mixed, seq_len=1).total - forward_flops(dense, seq_len=1).total
    assert extra == router + mlp


@pytest.mark.parametrize("query_latent_dim", [0, 9])
def test_latents_and_shared_experts_cost_what_pytorch_counts(query_latent_dim):
    """All experts are chosen, so that the counter sees the same products whatever the scores."""
    model = random_config(3).but(
        positions="rotary", num_kv_heads=random_config(3).num_heads, kv_latent_dim=11, rope_dim=4,
        query_latent_dim=query_latent_dim, attention_bias=False, attention_output_bias=False,
        num_layers=3, num_dense_layers=1, num_experts=4, experts_per_token=4, num_shared_experts=2,
        expert_intermediate_size=13, router="sigmoid", router_bias=True,
    )  # fmt: skip
    tokens = torch.zeros(2, 7, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        Decoder(model)(tokens)
    assert forward_flops(model, batch_size=2, seq_len=7).total == counter.get_total_flops()
    fewer = forward_flops(model.but(experts_per_token=1), batch_size=2, seq_len=7).total
    three_experts = 3 * (3 if model.gated else 2) * model.hidden_size * 13 * 2  # in two layers
    assert counter.get_total_flops() - fewer == 2 * 2 * 7 * three_experts


def test_utilization_of_palm_and_mt_nlg_is_the_printed_one():
    """chowdhery2022palm, section 4.1: 45.7 % without attention and 46.2 % with it; MT-NLG 29.7 %."""
    palm = {"tokens_per_second": 238_300, "peak_flops": 6144 * 275e12}
    assert utilization(6 * 540.35e9, **palm) == pytest.approx(0.457, abs=5e-4)
    attention = 12 * 118 * 48 * 256 * 2048
    assert utilization(6 * 540.35e9 + attention, **palm) == pytest.approx(0.462, abs=5e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: forward_flops(c, seq_len=0), "seq_len 0 is not between 1 and context_len 0"),
        (lambda c: forward_flops(c, seq_len=9, context_len=8), "seq_len 9 is not between 1 and"),
        (lambda c: forward_flops(c, seq_len=2, attention="half"), "attention 'half' is neither"),
        (lambda c: training_flops(c, seq_len=2, recomputation="some"), "recomputation 'some' is"),
        (lambda _: utilization(1, tokens_per_second=1, peak_flops=0), "peak_flops 0 is not"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(config("gpt2"))
