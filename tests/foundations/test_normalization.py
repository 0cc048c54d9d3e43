"""LayerNorm and RMSNorm against PyTorch's and transformers', and their laws."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llmbook.foundations.normalization import LayerNorm, RMSNorm, layer_norm, rms_norm

D, EPSILON = 48, 1e-5


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(2, 5, D, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, D, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_equal_torch_forward_and_backward(dtype, tolerance):
    x, weight, bias = (tensor.requires_grad_() for tensor in inputs(dtype))
    pairs = [
        (
            layer_norm(x, weight, bias, epsilon=EPSILON),
            functional.layer_norm(x, (D,), weight, bias, EPSILON),
        ),
        (rms_norm(x, weight, epsilon=EPSILON), functional.rms_norm(x, (D,), weight, EPSILON)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
        ours_grad, theirs_grad = (
            torch.autograd.grad(y.square().sum(), (x, weight)) for y in (ours, theirs)
        )
        torch.testing.assert_close(
            ours_grad, theirs_grad, atol=100 * tolerance, rtol=100 * tolerance
        )


def test_in_bf16_rms_norm_equals_transformers_to_the_bit():
    x, weight, _ = inputs(torch.bfloat16)
    theirs = LlamaRMSNorm(D, eps=EPSILON).to(torch.bfloat16)
    theirs.weight.data = weight
    assert torch.equal(rms_norm(x, weight, epsilon=EPSILON), theirs(x))


def test_in_bf16_layer_norm_equals_torch_to_the_bit():
    x, weight, bias = inputs(torch.bfloat16)
    expected = functional.layer_norm(x, (D,), weight, bias, EPSILON)
    assert torch.equal(layer_norm(x, weight, bias, epsilon=EPSILON), expected)


def test_layer_norm_ignores_shift_and_scale_and_rms_norm_scale_alone():
    x, *_ = inputs()
    layer, rms = LayerNorm(D, epsilon=0.0).double(), RMSNorm(D, epsilon=0.0).double()
    torch.testing.assert_close(layer(5 * x + 7), layer(x))
    torch.testing.assert_close(rms(5 * x), rms(x))
    assert not torch.allclose(rms(x + 7), rms(x), atol=0.1)


def test_on_vectors_without_mean_the_two_agree():
    x, weight, bias = inputs()
    x = x - x.mean(-1, keepdim=True)
    ours = layer_norm(x, weight, torch.zeros_like(bias), epsilon=EPSILON)
    torch.testing.assert_close(ours, rms_norm(x, weight, epsilon=EPSILON))


def test_the_output_has_mean_zero_and_mean_square_one():
    x, *_ = inputs()
    y = LayerNorm(D, epsilon=0.0).double()(x)
    torch.testing.assert_close(
        y.mean(-1), torch.zeros(2, 5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    for module in (LayerNorm(D, epsilon=0.0), RMSNorm(D, epsilon=0.0)):
        mean_square = module.double()(x).square().mean(-1)
        torch.testing.assert_close(mean_square, torch.ones(2, 5, dtype=torch.float64))
