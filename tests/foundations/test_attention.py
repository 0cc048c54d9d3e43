"""Attention against PyTorch, transformers and the sum written out; laws of masks and caches."""

import math
import random
from pathlib import Path

import pytest
import torch
from formula import expressions
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode
from transformers.masking_utils import sliding_window_causal_mask_function
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config

from llmbook.config import ModelConfig
from llmbook.costs.kv_cache import decode_flops, kv_bytes_per_token
from llmbook.foundations.attention import (
    Attention,
    KVCache,
    LatentAttention,
    attention,
    causal_mask,
    prefix_mask,
    window_mask,
)
from llmbook.foundations.positions import rope_frequencies, rotation

PAGE = Path(__file__).parents[2] / "book/foundations/attention.md"

TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 1e-5,
}  # 10 to 100 roundings of numbers of order one


def tensors(B, N, K, T, S, H, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, N, T, H), (B, K, S, H), (B, K, S, H))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("N", "K"), [(6, 6), (6, 3), (6, 2), (6, 1)])
def test_equals_torch_forward_and_backward(dtype, N, K):
    ours = [x.requires_grad_() for x in tensors(2, N, K, 5, 7, 4, dtype)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    mask = causal_mask(5, 7)
    output = attention(*ours, mask=mask)
    expected = scaled_dot_product_attention(*theirs, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(output, expected, atol=TOLERANCE[dtype], rtol=0)
    weights = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=10 * TOLERANCE[dtype], rtol=0)


def test_equals_the_sum_written_out():
    B, N, K, T, S, H = 1, 4, 2, 3, 5, 2
    query, key, value = (x.tolist() for x in tensors(B, N, K, T, S, H, torch.float64))
    ours = attention(*tensors(B, N, K, T, S, H, torch.float64), mask=causal_mask(T, S))
    for n in range(N):
        shared = n // (N // K)  # heads 0 and 1 read the first head of keys, 2 and 3 the second
        for t in range(T):
            seen = range(S - T + t + 1)
            scores = [
                sum(query[0][n][t][h] * key[0][shared][s][h] for h in range(H)) / math.sqrt(H)
                for s in seen
            ]
            total = sum(math.exp(score) for score in scores)
            for h in range(H):
                mixed = sum(math.exp(scores[s]) / total * value[0][shared][s][h] for s in seen)
                assert ours[0, n, t, h].item() == pytest.approx(mixed, abs=1e-14)


def test_bias_is_added_to_the_scaled_scores():
    query, key, value = tensors(2, 4, 4, 5, 5, 8, torch.float64)
    bias = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.3)
    ours = attention(query, key, value, bias=bias, scale=0.3)
    torch.testing.assert_close(ours, expected, atol=1e-14, rtol=0)


def test_without_scale_and_bias_equal_keys_give_the_mean_of_the_values():
    query, _, value = tensors(1, 2, 2, 3, 6, 4, torch.float64)
    same = torch.ones(1, 2, 6, 4, dtype=torch.float64)
    expected = value.mean(2, keepdim=True).expand(1, 2, 3, 4)
    torch.testing.assert_close(attention(query, same, value), expected)


def test_no_query_reads_what_stands_behind_it():
    query, key, value = tensors(1, 2, 2, 6, 6, 4, torch.float64)
    before = attention(query, key, value, mask=causal_mask(6, 6))
    key[:, :, 4:], value[:, :, 4:] = 100.0, -100.0
    after = attention(query, key, value, mask=causal_mask(6, 6))
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:])


def test_a_row_of_padding_stays_finite_with_its_gradient():
    query, key, value = (x.requires_grad_() for x in tensors(1, 2, 1, 3, 3, 4, torch.float32))
    mask = causal_mask(3, 3) & torch.tensor([False, True, True])
    attention(query, key, value, mask=mask).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (query, key, value))


def test_heads_that_do_not_divide_are_refused():
    query, key, value = tensors(1, 6, 4, 2, 2, 4, torch.float32)
    with pytest.raises(ValueError, match="6 heads of queries are not a multiple of 4"):
        attention(query, key, value)


def test_grouped_heads_allocate_no_copy_of_the_keys():
    """Of all tensors made, none is larger than the key: one repeated for its queries would be."""
    query, key, value = tensors(1, 8, 1, 1, 512, 64, torch.float32)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.untyped_storage().size() // 4)
            return result

    with Watch():
        attention(query, key, value)
    assert (
        max(sizes) == key.numel()
    )  # a view of the key; repeated for 8 heads it would be 8 times as large


def test_the_cache_returns_all_tokens_in_their_order():
    cache, generator = KVCache(), torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, T, 4, generator=generator) for T in (5, 1, 2)]
    for part in parts:
        keys, values = cache.append(part, -part)
    assert len(cache) == 8
    assert torch.equal(keys, torch.cat(parts, dim=2))
    assert torch.equal(values, -keys)


def test_values_may_have_a_width_of_their_own():
    query, key, _ = tensors(2, 4, 2, 3, 5, 8, torch.float64)
    value = tensors(2, 4, 2, 3, 5, 6, torch.float64)[2]
    expected = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, value), expected, atol=1e-14, rtol=0)


def test_shuffled_tokens_come_out_shuffled_alike():
    """Without a mask and without positions attention knows no order."""
    query, key, value = tensors(1, 2, 2, 7, 7, 4, torch.float64)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    shuffled = attention(query[:, :, order], key[:, :, order], value[:, :, order])
    torch.testing.assert_close(shuffled, attention(query, key, value)[:, :, order])


def test_heads_of_keys_repeated_for_their_group_change_nothing():
    query, key, value = tensors(1, 6, 2, 4, 4, 3, torch.float64)
    each = [x.repeat_interleave(3, dim=1) for x in (key, value)]
    torch.testing.assert_close(attention(query, key, value), attention(query, *each))


def test_prefix_mask_pair_by_pair():
    prefix = torch.tensor([[True, True, False, False, False], [False] * 5])
    mask = prefix_mask(prefix, num_queries=3)
    assert mask.shape == (2, 1, 3, 5)
    for row in range(2):
        for t in range(3):
            for s in range(5):
                assert mask[row, 0, t, s] == (s <= 2 + t or bool(prefix[row, s]))


def test_a_prefix_reads_itself_both_ways_and_nothing_of_the_answer():
    query, key, value = tensors(1, 2, 2, 6, 6, 4, torch.float64)
    mask = prefix_mask(torch.tensor([[True] * 3 + [False] * 3]), num_queries=6)
    before = attention(query, key, value, mask=mask)
    key[:, :, 2] += 1
    after = attention(query, key, value, mask=mask)
    assert (before[:, :, 0] != after[:, :, 0]).all()
    key[:, :, 3:], value[:, :, 3:] = 9.0, -9.0
    assert torch.equal(after[:, :, :3], attention(query, key, value, mask=mask)[:, :, :3])


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_window_mask_is_that_of_transformers(window):
    theirs = sliding_window_causal_mask_function(window)
    mask = window_mask(4, 9, window=window)
    for t in range(4):
        for s in range(9):
            where = [torch.tensor(i) for i in (0, 0, 5 + t, s)]
            assert bool(mask[t, s]) == bool(theirs(*where)), (t, s)


def test_a_window_of_the_whole_text_is_the_causal_mask():
    assert torch.equal(window_mask(3, 8, window=8), causal_mask(3, 8))
    with pytest.raises(ValueError, match="window 0 is not positive"):
        window_mask(2, 2, window=0)


@pytest.mark.parametrize(("L", "W"), [(1, 3), (2, 3), (3, 4), (4, 2)])
def test_through_layers_a_token_hears_exactly_as_far_as_the_formula_says(L, W):
    reach = eval(expressions(PAGE)["eq-reach"], {"L": L, "W": W})
    T = reach + 4
    config = ModelConfig(
        vocab_size=1, hidden_size=8, num_layers=L, num_heads=2, max_seq_len=T, attention_bias=False
    )
    torch.manual_seed(0)
    layers = [Attention(config).double() for _ in range(L)]
    hidden = torch.randn(1, T, 8, dtype=torch.float64, requires_grad=True)
    read = hidden
    for layer in layers:
        read = read + layer(read, mask=window_mask(T, T, window=W)[None, None])
    read[0, -1].sum().backward()
    heard = hidden.grad[0].abs().sum(-1).nonzero().min().item()
    assert T - 1 - heard == reach == L * (W - 1)


# latent attention

SIZES = {"hidden_size": 24, "num_heads": 4, "head_dim": 6, "latent_dim": 10, "rope_dim": 4}
narrow_and_whole_queries = pytest.mark.parametrize("query_latent_dim", [0, 7])


def latent_attention(query_latent_dim, dtype=torch.float64):
    torch.manual_seed(0)
    layer = LatentAttention(**SIZES, query_latent_dim=query_latent_dim)
    for weight in layer.parameters():
        nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.4)
    return layer.to(dtype)


def turns(first, last, dtype=torch.float64):
    return rotation(torch.arange(first, last).expand(2, -1), rope_frequencies(4), dtype=dtype)


def states(T=7, dtype=torch.float64):
    return torch.randn(
        2, T, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)


@narrow_and_whole_queries
def test_latent_attention_is_that_of_transformers(query_latent_dim):
    config = DeepseekV2Config(
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=query_latent_dim or None,
        kv_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=6,
        attention_bias=False,
        attn_implementation="eager",
    )
    theirs = modeling_deepseek_v2.DeepseekV2Attention(config, layer_idx=0)
    ours = latent_attention(query_latent_dim, torch.float32)
    query = {"q_proj.weight": ours.query_up.weight}
    if query_latent_dim:
        query = {
            "q_a_proj.weight": ours.query_down.weight,
            "q_a_layernorm.weight": ours.query_norm.weight,
            "q_b_proj.weight": ours.query_up.weight,
        }
    up = [x.weight.view(4, 6, 10) for x in (ours.key_up, ours.value_up)]
    theirs.load_state_dict(
        query
        | {
            "kv_a_proj_with_mqa.weight": ours.down.weight,
            "kv_a_layernorm.weight": ours.latent_norm.weight,
            "kv_b_proj.weight": torch.cat(up, dim=1).view(48, 10),
            "o_proj.weight": ours.output.weight,
        }
    )
    hidden, mask = states(dtype=torch.float32), causal_mask(7, 7)
    angles = torch.arange(7)[:, None] * rope_frequencies(4)
    expected, _ = theirs(
        hidden,
        attention_mask=torch.zeros(7, 7).masked_fill(~mask, -torch.inf)[None, None],
        position_embeddings=torch.polar(torch.ones_like(angles), angles)[None].to(torch.complex64),
    )
    found = ours(hidden, mask=mask[None, None], turn=turns(0, 7, torch.float32))
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@narrow_and_whole_queries
def test_absorbed_is_the_same_function_gradients_included(query_latent_dim):
    layer, hidden, mask = (
        latent_attention(query_latent_dim),
        states(),
        causal_mask(7, 7)[None, None],
    )
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view_as(hidden)
    outputs, gradients = [], []
    for run in (layer.forward, layer.absorbed):
        layer.zero_grad()
        outputs.append(run(hidden, mask=mask, turn=turns(0, 7)))
        (outputs[-1] * weights).sum().backward()
        gradients.append([weight.grad.clone() for weight in layer.parameters()])
    torch.testing.assert_close(*outputs, atol=1e-12, rtol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


@pytest.mark.parametrize("run", ["forward", "absorbed"])
def test_latents_cached_token_by_token_give_the_same_and_take_the_formula_s_bytes(run):
    layer, hidden, cache = latent_attention(7), states(), KVCache()
    whole = layer(hidden, mask=causal_mask(7, 7)[None, None], turn=turns(0, 7))
    for t in range(7):
        token = getattr(layer, run)(
            hidden[:, t : t + 1],
            mask=causal_mask(1, t + 1)[None, None],
            turn=turns(t, t + 1),
            cache=cache,
        )
        torch.testing.assert_close(token[:, 0], whole[:, t], atol=1e-12, rtol=0)
    held = sum(x.numel() for x in (cache.keys, cache.values))
    per_token = eval(
        expressions(PAGE)["eq-latent-bytes"], {"L": 1, "C": 10, "r": 4, "B": 1, "S": 1}
    )
    assert held * 2 == per_token * 2 * 7  # two bytes each; two sequences of seven tokens


@pytest.mark.parametrize("seed", range(5))
def test_latent_parameters_are_those_of_the_formula(seed):
    draw = random.Random(seed)
    letters = {name: draw.randrange(2, 40) for name in ("D", "N", "H", "C", "q")} | {
        "r": 2 * draw.randrange(1, 9)
    }
    D, N, H, C, r, q = (letters[name] for name in "DNHCrq")
    layer = LatentAttention(
        hidden_size=D, num_heads=N, head_dim=H, latent_dim=C, rope_dim=r, query_latent_dim=q
    )
    counted = sum(weight.numel() for weight in layer.parameters())
    page = expressions(PAGE)
    assert counted == sum(
        eval(page[part], letters) for part in ("eq-latent-queries", "eq-latent-rest")
    )


def test_a_query_reads_latents_at_the_intensity_of_the_formula():
    """FLOPs of scores and mix that PyTorch counts, over the two bytes of each number they read."""
    N, S, C, r = 8, 64, 16, 4
    query, key = torch.zeros(1, N, 1, C + r), torch.zeros(1, 1, S, C + r)
    with FlopCounterMode(display=False) as counter:
        attention(query, key, key[..., :C], scale=1.0)
    ours = eval(expressions(PAGE)["eq-latent-intensity"], {"N": N, "C": C, "r": r})
    assert counter.get_total_flops() / (2 * key.numel()) == pytest.approx(ours)


def test_an_odd_rotary_part_is_refused():
    with pytest.raises(ValueError, match="rope_dim 3 is odd"):
        LatentAttention(**(SIZES | {"rope_dim": 3}))


# cost


def counted_flops(config, T):
    with torch.device("meta"):
        layer = Attention(config)
        hidden = torch.empty(1, T, config.hidden_size)
        mask = torch.empty(1, 1, T, T, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        layer(hidden, mask=mask)
    return counter.get_total_flops()


@pytest.mark.parametrize(("D", "N", "K"), [(64, 4, 4), (64, 4, 1), (96, 6, 2)])
def test_the_projections_cost_as_much_as_the_scores_at_the_length_of_the_formula(D, N, K):
    T = round(eval(expressions(PAGE)["eq-quadratic"], {"D": D, "N": N, "K": K}))
    config = ModelConfig(
        vocab_size=8, hidden_size=D, num_layers=1, num_heads=N, num_kv_heads=K, max_seq_len=T
    )
    matrices = sum(w.numel() for w in Attention(config).parameters() if w.dim() == 2)
    assert counted_flops(config, T) == 2 * (2 * matrices * T)


def test_half_of_a_model_s_flops_are_attention_s_at_the_length_of_the_formula():
    config = ModelConfig(
        vocab_size=512, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, max_seq_len=9
    )
    alone = decode_flops(config, batch_size=1, context_len=0)
    length = eval(expressions(PAGE)["eq-half"], {"P": alone // 2, "L": 3, "N": 4, "H": 16})
    one_more = decode_flops(config, batch_size=1, context_len=1) - alone
    assert length * one_more == alone


def test_deepseek_v2_caches_as_much_as_two_and_a_quarter_heads():
    wide = ModelConfig(
        vocab_size=1, hidden_size=5120, num_layers=60, num_heads=128, head_dim=128, max_seq_len=1
    )
    sizes = {"L": 60, "C": 512, "r": 64, "B": 1, "S": 1}
    latent = eval(expressions(PAGE)["eq-latent-bytes"], sizes)
    assert latent / kv_bytes_per_token(wide.but(num_kv_heads=1)) == 2.25
