"""RWKV-4 against its definition, against transformers, and against its paper's counts."""

from pathlib import Path

import pytest
import torch
from formula import expressions
from transformers import RwkvConfig, RwkvForCausalLM
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from llmbook.foundations.rwkv import RWKV, empty_state, wkv_parallel, wkv_recurrent

PAGE = Path(__file__).parents[2] / "book/foundations/recurrence.md"
CLOSE = {"atol": 1e-12, "rtol": 0}


def tensors(*, B=2, T=9, D=5, dtype=torch.float64):
    luck = torch.Generator().manual_seed(0)
    decay = torch.rand(D, generator=luck, dtype=dtype)
    bonus = torch.randn(D, generator=luck, dtype=dtype)
    key, value = (torch.randn(B, T, D, generator=luck, dtype=dtype) for _ in range(2))
    return decay, bonus, key, value


def test_both_forms_are_the_weighted_mean_of_equation_16():
    decay, bonus, key, value = tensors()
    expected = torch.zeros_like(value)
    for t in range(9):
        weights = [(key[:, s] - (t - 1 - s) * decay).exp() for s in range(t)]
        weights.append((key[:, t] + bonus).exp())
        expected[:, t] = sum(w * value[:, s] for s, w in enumerate(weights)) / sum(weights)
    recurrent, _ = wkv_recurrent(decay, bonus, key, value, empty_state(key))
    torch.testing.assert_close(recurrent, expected, **CLOSE)
    torch.testing.assert_close(wkv_parallel(decay, bonus, key, value), expected, **CLOSE)


def test_gradients_of_both_forms_are_equal():
    inputs = [x.requires_grad_() for x in tensors()]
    weights = torch.linspace(-1, 1, 90, dtype=torch.float64).view(2, 9, 5)
    recurrent, _ = wkv_recurrent(*inputs, empty_state(inputs[2]))
    ours = torch.autograd.grad((recurrent * weights).sum(), inputs)
    others = torch.autograd.grad((wkv_parallel(*inputs) * weights).sum(), inputs)
    for x, y in zip(ours, others, strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


def test_equals_transformers_with_its_state():
    decay, bonus, key, value = tensors(dtype=torch.float32)
    expected, state = rwkv_linear_attention_cpu(decay.log(), bonus, key, value, return_state=True)
    output, ours = wkv_recurrent(decay, bonus, key, value, empty_state(key))
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    for x, y in zip((ours.numerator, ours.denominator, ours.exponent), state, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize("large", [200.0, -200.0])
def test_large_exponents_neither_overflow_nor_vanish(large):
    decay, bonus, key, value = tensors(dtype=torch.float32)
    output, _ = wkv_recurrent(decay, bonus, key + large, value, empty_state(key))
    torch.testing.assert_close(output, wkv_parallel(decay, bonus, key, value), atol=1e-4, rtol=1e-4)


def both(*, L=3, D=32, V=17, seed=0):
    torch.manual_seed(seed)
    config = RwkvConfig(vocab_size=V, hidden_size=D, num_hidden_layers=L, rescale_every=0)
    theirs = RwkvForCausalLM(config).eval()
    for parameter in theirs.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    ours = RWKV(vocab_size=V, hidden_size=D, num_layers=L)
    names = {
        "rwkv.embeddings.": "embedding.", "rwkv.blocks.0.pre_ln.": "embedding_norm.",
        "rwkv.ln_out.": "final_norm.", "rwkv.blocks.": "layers.", ".ln1.": ".time_norm.",
        ".ln2.": ".channel_norm.", ".attention.": ".time_mixing.", "time_mix_": "mix_",
        ".feed_forward.": ".channel_mixing.",
    }  # fmt: skip
    weights = {}
    for name, weight in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = weight.view(-1) if ".mix_" in name else weight
    ours.load_state_dict(weights)
    return ours.double(), theirs.double()


def test_logits_equal_transformers_in_one_pass_and_token_by_token():
    ours, theirs = both()
    tokens = torch.randint(17, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        logits, _ = ours(tokens)
        torch.testing.assert_close(logits, expected, atol=2e-6, rtol=1e-5)  # theirs works in fp32
        states, steps = None, []
        for token in tokens.unbind(1):
            step, states = ours(token[:, None], states)
            steps.append(step)
    torch.testing.assert_close(torch.cat(steps, 1), logits, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("L", "D", "V"), [(2, 12, 7), (3, 20, 31), (5, 8, 100)])
def test_parameters_and_state_follow_the_paper_s_formulas(L, D, V):
    sizes = {"L": L, "D": D, "V": V}
    with torch.device("meta"):
        model = RWKV(vocab_size=V, hidden_size=D, num_layers=L)
        _, states = model(torch.zeros(1, 2, dtype=torch.long))
    formula = expressions(PAGE)
    count = sum(p.numel() for p in model.parameters())
    assert count == eval(formula["eq-rwkv-parameters"], sizes)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) - V * D
    assert 2 * matrices == eval(formula["eq-rwkv-flops"], sizes)
    assert sum(x.numel() for state in states for x in state) == 5 * D * L


def test_the_state_stays_in_float32_under_16_bit_weights():
    model = RWKV(vocab_size=5, hidden_size=8, num_layers=1).bfloat16()
    logits, states = model(torch.zeros(1, 3, dtype=torch.long))
    assert logits.dtype == torch.bfloat16
    assert states[0].numerator.dtype == states[0].denominator.dtype == torch.float32
    assert sum(x.numel() * x.itemsize for x in states[0]) == 8 * (3 * 4 + 2 * 2)
