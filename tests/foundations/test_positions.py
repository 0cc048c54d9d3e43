"""Rotary positions and ALiBi against transformers and the papers, and their laws."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from llmbook.foundations.positions import (
    alibi_bias,
    alibi_slopes,
    pairs_to_halves,
    positions_under_padding,
    rope_frequencies,
    rotate,
    rotate_pairs,
    rotation,
    stretched,
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
