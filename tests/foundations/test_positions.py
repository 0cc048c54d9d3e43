"""Positions against transformers and the papers, and their laws."""

import math
from pathlib import Path

import pytest
import torch
from formula import expressions
from transformers import LlamaConfig, LlamaForCausalLM, XLNetConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as turned_as_gpt_j
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from llmbook.config import ModelConfig
from llmbook.foundations.attention import attention, causal_mask
from llmbook.foundations.decoder import Decoder
from llmbook.foundations.positions import (
    RelativePositions,
    alibi_bias,
    alibi_slopes,
    configured_frequencies,
    distances,
    ntk_theta,
    pair_with_turns,
    pairs_to_halves,
    positions_under_padding,
    rope_frequencies,
    rotate,
    rotate_pairs,
    rotation,
    sinusoidal_positions,
    stretched,
    yarn_frequencies,
    yarn_magnitude,
)
from llmbook.zoo.llama import load_from_transformers, transformers_config

PAGE = Path(__file__).parents[2] / "book/foundations/positions.md"
TINY = ModelConfig(
    vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, max_seq_len=64, positions="rotary"
)

H = 16


def vectors(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn_of(positions, dtype=torch.float64, theta=10_000.0):
    return rotation(torch.tensor([positions]), rope_frequencies(H, theta=theta), dtype=dtype)


@pytest.mark.parametrize("turned", [rotate, rotate_pairs])
def test_rotated_scores_depend_on_distance_only(turned):
    query, key = vectors(1, 1, 1, H), vectors(1, 1, 1, H, seed=1)

    def score(m, n):
        return (turned(query, turn_of([m])) * turned(key, turn_of([n]))).sum()

    for distance in (0, 1, 17):
        scores = torch.stack([score(n + distance, n) for n in (0, 3, 200, 5000)])
        torch.testing.assert_close(scores, scores[:1].expand(4), atol=1e-11, rtol=0)
    assert abs(score(5, 3) - score(3, 5)) > 1e-3  # direction counts


@pytest.mark.parametrize("turned", [rotate, rotate_pairs])
def test_rotation_keeps_lengths_and_position_zero_turns_nothing(turned):
    x = vectors(2, 3, 4, H)
    turn = rotation(torch.tensor([[0, 1, 2, 900]] * 2), rope_frequencies(H), dtype=x.dtype)
    torch.testing.assert_close(turned(x, turn).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned(x, turn)[:, :, 0], x[:, :, 0])


def test_pairs_are_complex_numbers_turned():
    """x_{2i} + j x_{2i+1} times exp(j position frequency): eq. (34) of the paper as a product."""
    x = vectors(1, 2, 3, H)
    positions = torch.tensor([4, 5, 6], dtype=torch.float64)
    angles = positions[:, None] * rope_frequencies(H)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angles), angles
    )
    torch.testing.assert_close(
        rotate_pairs(x, turn_of([4, 5, 6])), torch.view_as_real(turned).flatten(-2)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_equal_transformers(dtype):
    config = LlamaConfig(hidden_size=4 * H, num_attention_heads=4, rope_parameters=None)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}
    positions = torch.tensor([[0, 0, 1, 2, 77], [0, 1, 2, 3, 4]])
    query, key = vectors(2, 4, 5, H).to(dtype), vectors(2, 2, 5, H, seed=1).to(dtype)
    expected = apply_rotary_pos_emb(query, key, *LlamaRotaryEmbedding(config)(query, positions))
    turn = rotation(positions, rope_frequencies(H, theta=500_000.0), dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0  # the same roundings in bf16, to the bit
    for ours, theirs in zip((rotate(query, turn), rotate(key, turn)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("factor", "trained_len", "H"), [(8.0, 8192, 128), (32.0, 8192, 64), (4.0, 64, 16)]
)
def test_stretched_frequencies_equal_transformers(factor, trained_len, H):
    config = LlamaConfig(hidden_size=H, num_attention_heads=1, head_dim=H)
    config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": trained_len,
    }  # fmt: skip
    ours = stretched(rope_frequencies(H, theta=500_000.0), factor=factor, trained_len=trained_len)
    torch.testing.assert_close(
        ours.float(), LlamaRotaryEmbedding(config).inv_freq, rtol=2e-6, atol=0
    )


def test_a_factor_of_one_stretches_nothing():
    before = rope_frequencies(H)
    after = stretched(before, factor=1.0, trained_len=64)
    torch.testing.assert_close(after, before, rtol=1e-15, atol=0)


def test_matrices_for_pairs_give_the_same_scores_in_halves():
    hidden, turn = vectors(1, 5, 24), turn_of([0, 1, 2, 3, 9])
    matrices = {"query": vectors(4 * H, 24, seed=1), "key": vectors(4 * H, 24, seed=2)}

    def heads(weight):
        return (hidden @ weight.T).unflatten(-1, (4, H)).transpose(1, 2)  # B N T H

    pairs = [rotate_pairs(heads(weight), turn) for weight in matrices.values()]
    halves = [
        rotate(heads(pairs_to_halves(weight, head_dim=H)), turn) for weight in matrices.values()
    ]
    torch.testing.assert_close(halves[0] @ halves[1].mT, pairs[0] @ pairs[1].mT)
    assert not torch.allclose(rotate(heads(matrices["query"]), turn), pairs[0])


@pytest.mark.parametrize("num_heads", [1, 2, 6, 8, 12, 16, 20, 112])
def test_alibi_equals_bloom_up_to_what_softmax_ignores(num_heads):
    """BLOOM adds slope x key position; the difference is the same for all keys of a query."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    theirs = build_alibi_tensor(mask, num_heads, torch.float32).view(2, num_heads, 1, 5)
    ours = alibi_bias(positions_under_padding(mask.bool()), num_queries=3, num_heads=num_heads)
    for b in range(2):
        real = mask[b].bool()
        difference = (theirs[b] - ours[b])[:, :, real]
        torch.testing.assert_close(
            difference, difference[:, :, :1].expand_as(difference), atol=1e-5, rtol=0
        )


def test_slopes_of_the_paper():
    """Section 3: 8 heads have 1/2, 1/4 ... 1/256; 16 heads start at 2^-0.5 and end there too."""
    assert alibi_slopes(8).tolist() == [1 / 2**i for i in range(1, 9)]
    torch.testing.assert_close(
        alibi_slopes(16)[[0, -1]], torch.tensor([2**-0.5, 2**-8], dtype=torch.float64)
    )


def test_alibi_is_zero_at_the_query_and_falls_with_distance():
    bias = alibi_bias(torch.arange(6)[None], num_queries=6, num_heads=4)
    assert (bias.diagonal(dim1=2, dim2=3) == 0).all()
    assert (bias[:, :, 5].diff(dim=-1) > 0).all()


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    assert positions_under_padding(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_halves_and_pairs_are_not_interchangeable():
    """LLaMA's weights in GPT-J's layout give other scores, though each layout keeps every law."""
    query, key, turn = vectors(1, 1, 3, H), vectors(1, 1, 3, H, seed=1), turn_of([0, 5, 9])
    halves, pairs = (f(query, turn) @ f(key, turn).mT for f in (rotate, rotate_pairs))
    assert (halves - pairs).abs().max() > 0.1


def test_pairs_equal_gpt_j():
    x = vectors(2, 4, 3, H)
    angles = torch.arange(3, dtype=torch.float64)[:, None] * rope_frequencies(H)
    sin, cos = (function(angles).expand(2, -1, -1) for function in (torch.sin, torch.cos))
    theirs = turned_as_gpt_j(x.transpose(1, 2), sin, cos).transpose(1, 2)  # positions before heads
    turn = rotation(torch.arange(3).expand(2, -1), rope_frequencies(H), dtype=x.dtype)
    torch.testing.assert_close(rotate_pairs(x, turn), theirs)


def test_pairs_are_turned_in_the_direction_of_the_paper():
    """Eq. (13): the first axis moves towards the second, by w radians a position."""
    axis = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(1, 1, 1, 4)
    turn = rotation(torch.tensor([[3]]), rope_frequencies(4), dtype=axis.dtype)
    expected = torch.tensor([math.cos(3), math.sin(3), 0, 0], dtype=torch.float64)
    torch.testing.assert_close(rotate_pairs(axis, turn)[0, 0, 0], expected)


def test_frequencies_fall_from_one_to_just_above_one_over_theta():
    """What a wrong sign, or an index that starts at one, would break; no law of scores sees it."""
    frequencies = rope_frequencies(128, theta=10_000.0)
    assert frequencies[0] == 1
    torch.testing.assert_close(frequencies[-1].item(), 10_000.0 ** (-126 / 128))
    torch.testing.assert_close(frequencies[1:] / frequencies[:-1], frequencies[1].expand(63))


def test_sinusoids_equal_the_formula_entry_by_entry():
    table = sinusoidal_positions(40, hidden_size=12)
    for p in (0, 1, 7, 39):
        for i in range(6):
            angle = p / 10_000 ** (2 * i / 12)
            expected = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
            torch.testing.assert_close(table[p, 2 * i : 2 * i + 2], expected)


def test_sinusoids_equal_xlnet_but_for_their_order():
    """XLNet, Transformer-XL's heir, writes all sines first."""
    theirs = XLNetModel.positional_embedding(
        torch.arange(9.0), 1 / 10_000 ** (torch.arange(0, 8, 2) / 8)
    )[:, 0]
    ours = sinusoidal_positions(9, hidden_size=8).float()
    torch.testing.assert_close(torch.cat((ours[:, 0::2], ours[:, 1::2]), -1), theirs)


@pytest.mark.parametrize("shift", [1, 13])
def test_products_of_sinusoids_depend_on_distance_only(shift):
    table = sinusoidal_positions(60, hidden_size=32)
    products = table @ table.T
    torch.testing.assert_close(products[shift:, shift:], products[:-shift, :-shift])


def relative_layer(num_heads=3, hidden_size=24, seed=0):
    config = TINY.but(
        hidden_size=hidden_size, num_heads=num_heads, head_dim=8, num_kv_heads=num_heads
    )
    layer = RelativePositions(config).double()
    generator = torch.Generator().manual_seed(seed)
    for weight in layer.parameters():
        weight.data.normal_(generator=generator)
    return layer


@torch.no_grad()
@pytest.mark.parametrize(("T", "S"), [(5, 5), (2, 7), (1, 4)])
def test_relative_scores_are_the_four_terms_one_by_one(T, S):
    layer, query, key = relative_layer(), vectors(2, 3, T, 8), vectors(2, 3, S, 8, seed=1)
    shifted, bias = layer(query, num_keys=S)
    scores = shifted @ key.mT * 8**-0.5 + bias
    matrix = layer.distance_key.weight.view(3, 8, 24)
    u, v = layer.content_bias[:, 0], layer.position_bias[:, 0]
    for n in range(3):
        for row in range(T):
            i = S - T + row
            for j in range(i + 1):
                place = matrix[n] @ sinusoidal_positions(S, hidden_size=24)[i - j]
                q, k = query[:, n, row], key[:, n, j]
                terms = (q * k).sum(-1) + q @ place + k @ u[n] + place @ v[n]
                torch.testing.assert_close(scores[:, n, row, j], terms / 8**0.5)


@torch.no_grad()
def test_relative_attention_equals_xlnet():
    """The model that took Transformer-XL's scores over; transformers still carries it."""
    T, S, layer = 3, 6, relative_layer()
    query, key, value = (
        vectors(2, 3, T, 8),
        vectors(2, 3, S, 8, seed=1),
        vectors(2, 3, S, 8, seed=2),
    )
    theirs = XLNetRelativeAttention(XLNetConfig(d_model=24, n_head=3, dropout=0.0)).double().eval()
    theirs.r_w_bias.data = layer.content_bias[:, 0]
    theirs.r_r_bias.data = layer.position_bias[:, 0]
    along = torch.arange(S, -T, -1)  # distances, from the farthest left to the right
    table = sinusoidal_positions(S + 1, hidden_size=24)[along.clamp(min=0)]
    keys = layer.distance_key(table).view(S + T, 1, 3, 8).expand(-1, 2, -1, -1)
    hidden_keys = ~causal_mask(T, S)[:, :, None, None].expand(-1, -1, 2, 3)
    first = [x.permute(2, 0, 1, 3) for x in (query, key, value)]  # positions first
    expected = theirs.rel_attn_core(*first, keys, attn_mask=hidden_keys.double())
    shifted, bias = layer(query, num_keys=S)
    ours = attention(shifted, key, value, mask=causal_mask(T, S), bias=bias)
    torch.testing.assert_close(ours.permute(2, 0, 1, 3), expected)


def test_distances_are_those_of_the_causal_mask():
    assert torch.equal(distances(6, num_queries=4) >= 0, causal_mask(4, 6))


def rope_parameters(kind, **options):
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=1, head_dim=64, max_position_embeddings=256
    )
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10_000.0} | options
    return config


def test_interpolation_equals_transformers():
    theirs, _ = ROPE_INIT_FUNCTIONS["linear"](rope_parameters("linear", factor=4.0))
    ours = configured_frequencies(TINY.but(head_dim=64, rope_scaling="linear", rope_factor=4.0))
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-6, atol=0)


def test_interpolated_frequencies_are_fractional_positions():
    """What the paper says: position m is read at m / s (chen2023extending, eq. 4)."""
    turn = rotation(torch.tensor([[0, 4, 8]]), rope_frequencies(H) / 4, dtype=torch.float64)
    for ours, whole in zip(turn, turn_of([0, 1, 2]), strict=True):
        torch.testing.assert_close(ours, whole)


@pytest.mark.parametrize("factor", [1.5, 4.0, 16.0])
def test_ntk_equals_transformers_at_the_length_that_it_stretches_to(factor):
    """Its "dynamic" kind, whose factor is the growth of the text where its own is 1."""
    config = rope_parameters("dynamic", factor=1.0)
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=int(256 * factor))
    ours = configured_frequencies(TINY.but(head_dim=64, rope_scaling="ntk", rope_factor=factor))
    torch.testing.assert_close(ours.float(), theirs, rtol=5e-6, atol=0)


def test_ntk_keeps_the_fastest_pair_and_slows_the_last_by_the_factor():
    before = rope_frequencies(128)
    after = rope_frequencies(128, theta=ntk_theta(10_000.0, factor=8.0, head_dim=128))
    ratio = before / after
    torch.testing.assert_close(ratio[[0, -1]], torch.tensor([1.0, 8.0], dtype=torch.float64))
    assert (ratio.diff() > 0).all()


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "trained_len"),
    [
        (128, 10_000.0, 16.0, 4096),
        (64, 150_000.0, 32.0, 4096),
        (16, 10_000.0, 4.0, 32),
        (8, 1e6, 2.0, 64),
    ],
)
def test_yarn_equals_transformers(head_dim, theta, factor, trained_len):
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim)
    config.rope_parameters = {
        "rope_type": "yarn", "rope_theta": theta, "factor": factor,
        "original_max_position_embeddings": trained_len,
    }  # fmt: skip
    theirs, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config)
    ours = yarn_frequencies(head_dim, theta=theta, factor=factor, trained_len=trained_len)
    torch.testing.assert_close(ours.float(), theirs, rtol=5e-6, atol=0)
    assert yarn_magnitude(factor) == pytest.approx(magnitude)


def test_yarn_s_paper_and_code_agree_at_both_ends_only():
    before = rope_frequencies(128)
    paper = before / stretched(before, factor=4.0, trained_len=2048, slow=1.0, fast=32.0)
    code = before / yarn_frequencies(128, theta=10_000.0, factor=4.0, trained_len=2048)
    torch.testing.assert_close(paper[[0, -1]], code[[0, -1]])
    assert ((code - paper).abs() > 0.2).any()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_logits_of_a_stretched_decoder_equal_transformers(kind):
    """YaRN's magnitude is in the scores, not in the frequencies: only logits show it."""
    config = TINY.but(
        norm="rms_norm", gated=True, activation="silu", attention_bias=False, mlp_bias=False,
        attention_output_bias=False, tie_embeddings=False, rope_scaling=kind, rope_factor=4.0,
        rope_trained_len=16,
    )  # fmt: skip
    arguments = transformers_config(config.but(rope_scaling="llama3"))
    arguments["rope_parameters"] |= {"rope_type": kind}
    theirs = LlamaForCausalLM(LlamaConfig(**arguments)).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in theirs.parameters():
        weight.normal_(std=0.3, generator=generator)
    ours = load_from_transformers(Decoder(config), theirs.state_dict())
    tokens = torch.randint(50, (2, 40), generator=generator)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scaling", ["llama3", "linear", "ntk", "yarn"])
def test_a_configured_factor_of_one_stretches_nothing(scaling):
    config = TINY.but(rope_scaling=scaling, rope_factor=1.0)
    torch.testing.assert_close(configured_frequencies(config), rope_frequencies(16))
    with pytest.raises(ValueError, match=r"rope_factor 0\.25 is below 1"):
        configured_frequencies(config.but(rope_factor=0.25))


def test_odd_and_single_pairs_are_refused():
    with pytest.raises(ValueError, match="head_dim 5 is odd"):
        rope_frequencies(5)
    with pytest.raises(ValueError, match="head_dim 2 has one pair"):
        ntk_theta(10_000.0, factor=2.0, head_dim=2)


@pytest.mark.parametrize("seed", range(5))
def test_formulas_of_the_page(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    H, N, T, s = 2 * draw(2, 65), 2 ** draw(0, 7), draw(50, 5000), float(draw(2, 33))
    theta, r, i = float(draw(100, 10**6)), float(draw(1, 9)), draw(0, 2)
    given = {"H": H, "N": N, "T": T, "s": s, "theta": theta, "r": r, "i": i, "pi": math.pi}

    def value(label):
        return eval(expressions(PAGE)[label], {"log": math.log, "sqrt": math.sqrt}, given)

    assert value("eq-rope-frequency") == pytest.approx(rope_frequencies(H, theta=theta)[i].item())
    assert value("eq-pair-with-turns") == pytest.approx(
        pair_with_turns(r, head_dim=H, theta=theta, trained_len=T)
    )
    assert value("eq-ntk-theta") == pytest.approx(ntk_theta(theta, factor=s, head_dim=H))
    assert value("eq-yarn-magnitude") == pytest.approx(yarn_magnitude(s))
    given["i"] = draw(1, N + 1)
    assert value("eq-alibi-slope") == pytest.approx(alibi_slopes(N)[given["i"] - 1].item())
