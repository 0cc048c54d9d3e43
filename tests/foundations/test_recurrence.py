"""States of fixed size against their definitions, against transformers, and against a cache."""

import math

import pytest
import torch
from torch import nn
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
from transformers.models.mamba.modeling_mamba import mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from llmbook.config import ModelConfig
from llmbook.foundations.attention import causal_mask, window_mask
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.recurrence import (
    chunked,
    delta_chunked,
    delta_recurrent,
    in_segments,
    linear_attention,
    parallel,
    recurrent,
    scan,
    scan_rounds,
    selective_scan,
)

CLOSE = {"atol": 1e-12, "rtol": 0}
CLOSE_FP32 = {"atol": 2e-5, "rtol": 1e-5}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(*, T=23, H=4, H_v=3, vector=False, seed=0, dtype=torch.float64, B=2, N=3):
    luck = generator(seed)
    draw = [torch.randn(B, N, T, size, generator=luck, dtype=dtype) for size in (H, H, H_v)]
    key = draw[1] / draw[1].norm(dim=-1, keepdim=True)
    log_decay = -torch.rand(B, N, T, H if vector else 1, generator=luck, dtype=dtype)
    rate = torch.rand(B, N, T, generator=luck, dtype=dtype)
    return draw[0], key, draw[2], log_decay, rate


def unit(*shape, luck):
    x = torch.randn(*shape, generator=luck, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("vector", [False, True])
def test_output_is_the_sum_over_all_earlier_tokens_each_decayed_by_what_came_after(vector):
    q, k, v, log_decay, _ = tensors(T=6, vector=vector)
    g = log_decay.exp().expand_as(k)
    expected = torch.zeros_like(v)
    for t in range(6):
        for s in range(t + 1):
            kept = g[:, :, s + 1 : t + 1].prod(dim=2)
            expected[:, :, t] += (q[:, :, t] * kept * k[:, :, s]).sum(-1, keepdim=True) * v[:, :, s]
    torch.testing.assert_close(parallel(q, k, v, log_decay), expected, **CLOSE)
    torch.testing.assert_close(recurrent(q, k, v, log_decay)[0], expected, **CLOSE)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("size", [1, 5, 23, 64])
def test_three_forms_are_equal_with_their_gradients(vector, size):
    inputs = [x.requires_grad_() for x in tensors(vector=vector)[:4]]
    weights = torch.linspace(-1, 1, 2 * 3 * 23 * 3, dtype=torch.float64).view(2, 3, 23, 3)
    found = []
    for form in (parallel, lambda *x: recurrent(*x)[0], lambda *x: chunked(*x, chunk_size=size)[0]):
        output = form(*inputs)
        found.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            torch.testing.assert_close(x, y, atol=1e-11, rtol=0)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_delta_rule_in_chunks_equals_it_token_by_token(vector, size):
    inputs = tensors(vector=vector)
    output, state = delta_recurrent(*inputs)
    in_chunks, same_state = delta_chunked(*inputs, chunk_size=size)
    torch.testing.assert_close(in_chunks, output, **CLOSE)
    torch.testing.assert_close(same_state, state, **CLOSE)


@pytest.mark.parametrize("form", [recurrent, chunked, delta_recurrent, delta_chunked])
def test_a_state_handed_on_stands_for_all_that_was_read(form):
    inputs = tensors(vector=True)[: 5 if "delta" in form.__name__ else 4]
    whole, last = form(*inputs)
    _, state = form(*(x[:, :, :9] for x in inputs))
    rest, same = form(*(x[:, :, 9:] for x in inputs), state=state)
    torch.testing.assert_close(rest, whole[:, :, 9:], **CLOSE)
    torch.testing.assert_close(same, last, **CLOSE)


def test_linear_attention_is_the_weighted_mean_written_out():
    q, k, v, *_ = tensors(T=7)
    f, expected = lambda x: torch.where(x > 0, x + 1, x.exp()), torch.zeros_like(v)
    for t in range(7):
        weights = (f(k[:, :, : t + 1]) * f(q[:, :, t : t + 1])).sum(-1, keepdim=True)
        expected[:, :, t] = (weights * v[:, :, : t + 1]).sum(2) / weights.sum(2)
    for size in (2, 64):
        torch.testing.assert_close(linear_attention(q, k, v, chunk_size=size), expected, **CLOSE)


def test_strong_decay_does_not_overflow():
    q, k, v, log_decay, _ = tensors(T=200, dtype=torch.float32)
    output, _ = chunked(q, k, v, 100 * log_decay, chunk_size=200)
    expected, _ = recurrent(q, k, v, 100 * log_decay)
    torch.testing.assert_close(output, expected, atol=2e-3, rtol=0)  # sums near 10,000 in fp32
    short, _ = chunked(q, k, v, 100 * log_decay, chunk_size=8)
    torch.testing.assert_close(short, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("theirs", [torch_recurrent_gated_delta_rule, torch_chunk_gated_delta_rule])
def test_gated_delta_rule_equals_qwen3_next(theirs):
    q, k, v, log_decay, rate = tensors(T=70, H=16, H_v=8, dtype=torch.float32)
    token_first = [x.transpose(1, 2) for x in (q, k, v, log_decay[..., 0], rate)]
    expected, state = theirs(*token_first, output_final_state=True)
    for form in (delta_recurrent, delta_chunked):
        output, ours = form(q / math.sqrt(16), k, v, log_decay, rate)
        torch.testing.assert_close(output.transpose(1, 2), expected, **CLOSE_FP32)
        torch.testing.assert_close(ours, state, **CLOSE_FP32)


def test_a_decay_for_each_number_of_the_key_is_kimi_delta_attention():
    q, k, v, log_decay, rate = tensors(T=30, H=16, vector=True, dtype=torch.float32)
    token_first = [x.transpose(1, 2) for x in (q, k, v, log_decay, rate)]
    expected, _ = recurrent_kimi_delta_attention(*token_first, None, False)
    output, _ = delta_chunked(q / math.sqrt(16), k, v, log_decay, rate, chunk_size=8)
    torch.testing.assert_close(output.transpose(1, 2), expected, **CLOSE_FP32)


def test_one_decay_a_token_is_mamba_2():
    luck = generator(3)
    B, T, N, P, n = 2, 40, 3, 5, 8  # P numbers a head, n of state
    inputs, step = torch.randn(B, T, N, P, generator=luck), torch.rand(B, T, N, generator=luck)
    rates = -torch.rand(N, generator=luck)
    write, read = (torch.randn(B, T, 1, n, generator=luck) for _ in range(2))
    expected = mamba2_chunk_scan(inputs, step, rates, write, read, chunk_size=16)
    expected = expected[0] if isinstance(expected, tuple) else expected
    k, q = (x.expand(B, T, N, n).transpose(1, 2) for x in (write, read))
    v = (inputs * step[..., None]).transpose(1, 2)
    output, _ = chunked(q, k, v, (step * rates).transpose(1, 2)[..., None], chunk_size=16)
    torch.testing.assert_close(output.transpose(1, 2), expected.view(B, T, N, P), **CLOSE_FP32)


def test_selective_scan_equals_mamba():
    luck = generator(4)
    B, T, D, n = 2, 21, 6, 4
    inputs, step = torch.randn(B, D, T, generator=luck), torch.rand(B, D, T, generator=luck)
    rates = -torch.rand(D, n, generator=luck)
    write, read = (torch.randn(B, n, T, generator=luck) for _ in range(2))
    expected = mamba_selective_scan(inputs, step, rates, write, read)
    ours = selective_scan(inputs.mT, step.mT, rates, write.mT, read.mT)
    torch.testing.assert_close(ours.mT, expected, **CLOSE_FP32)


@pytest.mark.parametrize("length", [1, 2, 3, 6, 8, 13, 64, 100])
def test_scan_equals_the_loop_in_few_rounds(length):
    luck = generator(length)
    decay, inputs = (torch.randn(length, 3, generator=luck, dtype=torch.float64) for _ in range(2))
    x, expected = torch.zeros(3, dtype=torch.float64), []
    for a, b in zip(decay, inputs, strict=True):
        x = a * x + b
        expected.append(x)
    torch.testing.assert_close(scan(decay, inputs), torch.stack(expected), rtol=1e-9, atol=1e-9)
    rounds = scan_rounds(length)
    assert len(rounds) <= 2 * max(1, math.ceil(math.log2(length)))
    assert sum(map(len, rounds)) < 2 * length  # work of the loop, doubled at most


def stack(window, *, num_layers=3):
    config = ModelConfig(
        vocab_size=2, hidden_size=16, num_layers=num_layers, num_heads=2, max_seq_len=64
    )
    blocks = initialise(Decoder(config), generator=generator(), std=0.3).double().layers

    def layer(block):
        def run(seen):
            T = seen.shape[1]
            mask = causal_mask(T, T) if window is None else window_mask(T, T, window=window)
            return block(seen, mask=mask.expand(len(seen), 1, T, T))

        return run

    return [layer(block) for block in blocks]


@pytest.mark.parametrize(("segment_len", "memory_len"), [(5, 5), (4, 9), (7, 3), (30, 1)])
def test_segments_with_memory_equal_one_pass_with_a_window(segment_len, memory_len):
    layers = stack(memory_len + 1)
    hidden = torch.randn(2, 23, 16, generator=generator(1), dtype=torch.float64)
    whole = hidden
    for layer in layers:
        whole = layer(whole)
    pieces = in_segments(layers, hidden, segment_len=segment_len, memory_len=memory_len)
    torch.testing.assert_close(pieces, whole, **CLOSE)


def test_a_segment_is_reached_from_as_many_segments_back_as_there_are_layers():
    text = torch.randn(1, 30, 16, generator=generator(1), dtype=torch.float64)
    texts = text.repeat(31, 1, 1)  # the last one unchanged, in each other one token flipped
    texts[torch.arange(30), torch.arange(30)] *= -1
    last = in_segments(stack(None), texts, segment_len=5, memory_len=5)[:, -1]
    reached = (last[:30] - last[30]).abs().amax(-1) > 1e-12
    assert reached.tolist() == [False] * 10 + [True] * 20  # the own segment and 3 before it


def test_no_gradient_flows_into_the_memory():
    hidden = torch.randn(1, 10, 16, dtype=torch.float64, requires_grad=True)
    in_segments(stack(None), hidden, segment_len=5, memory_len=5)[:, 5:].sum().backward()
    assert hidden.grad[:, :5].eq(0).all()
    assert hidden.grad[:, 5:].ne(0).any()


def test_a_rewritten_key_returns_its_last_value_by_the_delta_rule_alone():
    luck = generator(5)
    k, v = unit(1, 1, 8, 32, luck=luck).repeat(1, 1, 5, 1), unit(1, 1, 40, 32, luck=luck)
    k = torch.linalg.qr(k[0, 0, :8].T)[0].T[None, None].repeat(1, 1, 5, 1)  # orthogonal
    zero = torch.zeros_like(k[..., :1])
    _, state = delta_recurrent(k, k, v, zero, 1 + zero[..., 0])
    torch.testing.assert_close(k[:, :, -8:] @ state, v[:, :, -8:], **CLOSE)
    _, state = recurrent(k, k, v, zero)
    torch.testing.assert_close(k[:, :, -8:] @ state, v.unflatten(2, (5, 8)).sum(2), **CLOSE)


@pytest.mark.parametrize(("squared", "grows"), [(1.9, False), (2.1, True)])
def test_a_key_that_comes_back_explodes_the_state_beyond_a_step_of_two(squared, grows):
    k = (torch.eye(3)[0] * squared**0.5).expand(1, 1, 200, 3)
    zero = torch.zeros(1, 1, 200, 1)
    _, state = delta_recurrent(k, k, torch.ones(1, 1, 200, 2), zero, 1 + zero[..., 0])
    assert (state.abs().max() > 1000) == grows


def test_qwen3_next_has_one_layer_of_attention_in_four():
    kinds = Qwen3NextConfig().layer_types
    assert kinds == (["linear_attention"] * 3 + ["full_attention"]) * (len(kinds) // 4)


@pytest.mark.parametrize("form", [chunked, delta_chunked])
def test_a_chunk_holds_a_token(form):
    inputs = tensors()[: 5 if form is delta_chunked else 4]
    with pytest.raises(ValueError, match="chunk_size 0 is below 1"):
        form(*inputs, chunk_size=0)


def test_layers_may_be_any_callables():
    linear = nn.Linear(4, 4)
    x = torch.randn(1, 6, 4)
    torch.testing.assert_close(in_segments([linear], x, segment_len=2, memory_len=2), linear(x))
