"""Attention against PyTorch's own and the sum written out; laws of masks and caches."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llmbook.foundations.attention import KVCache, attention, causal_mask

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
