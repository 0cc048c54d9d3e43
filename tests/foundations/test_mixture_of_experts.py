"""The router and the experts against a loop over tokens, and their laws.

Against transformers' Mixtral they are compared through the decoder, in tests/foundations/test_decoder.py.
"""

import pytest
import torch
from torch import nn

from llmbook.foundations.mixture_of_experts import MixtureOfExperts, route


def layer(*, num_experts=5, experts_per_token=2, hidden_size=6, seed=0):
    torch.manual_seed(seed)
    experts = [nn.Sequential(nn.Linear(hidden_size, 9), nn.Tanh(), nn.Linear(9, hidden_size))
               for _ in range(num_experts)]  # fmt: skip
    return MixtureOfExperts(
        experts, hidden_size=hidden_size, experts_per_token=experts_per_token
    ).double()


@pytest.mark.parametrize("experts_per_token", [1, 2, 5])
@torch.no_grad()
def test_the_layer_is_a_weighted_sum_over_the_chosen_experts_token_by_token(experts_per_token):
    """jiang2024mixtral, section 2.1: softmax over the top k, all other weights zero."""
    moe = layer(experts_per_token=experts_per_token)
    hidden = torch.randn(2, 7, 6, dtype=torch.float64)
    output = moe(hidden)
    for b in range(2):
        for t in range(7):
            x = hidden[b, t]
            scores = moe.router.weight @ x
            chosen = sorted(range(5), key=lambda e: -scores[e].item())[:experts_per_token]
            exponentials = {e: scores[e].exp() for e in chosen}
            expected = sum(
                exponentials[e] / sum(exponentials.values()) * moe.experts[e](x) for e in chosen
            )
            torch.testing.assert_close(output[b, t], expected, rtol=1e-12, atol=1e-12)


def test_a_softmax_over_all_experts_scaled_to_one_gives_the_same_weights():
    scores = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights, experts = route(scores, experts_per_token=3)
    shares = scores.softmax(-1).gather(-1, experts)
    torch.testing.assert_close(weights, shares / shares.sum(-1, keepdim=True))
    assert (weights.sum(-1) - 1).abs().max() < 1e-12
    for row, (chosen, left_out) in enumerate(
        zip(experts.tolist(), scores.topk(5, largest=False).indices.tolist(), strict=True)
    ):
        assert not set(chosen) & set(left_out), row


def test_equal_experts_are_one_feed_forward_layer():
    moe = layer()
    for expert in moe.experts:
        expert.load_state_dict(moe.experts[0].state_dict())
    hidden = torch.randn(2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(moe(hidden), moe.experts[0](hidden))


def test_gradients_reach_the_router_and_the_chosen_experts_alone():
    moe = layer()
    hidden = torch.randn(1, 1, 6, dtype=torch.float64)
    moe(hidden).square().sum().backward()
    _, chosen = route(moe.router(hidden.flatten(0, 1)), experts_per_token=2)
    for number, expert in enumerate(moe.experts):
        grad = expert[0].weight.grad
        assert (number in chosen[0].tolist()) == (grad is not None and bool(grad.any())), number
    assert moe.router.weight.grad[chosen[0]].any(-1).all()
    assert torch.autograd.gradcheck(moe, torch.randn(1, 3, 6, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("experts_per_token", [0, 5])
def test_more_experts_than_there_are_cannot_be_chosen(experts_per_token):
    with pytest.raises(
        ValueError,
        match=f"experts_per_token {experts_per_token} is not between 1 and the number of experts, 4",
    ):
        route(torch.zeros(3, 4), experts_per_token=experts_per_token)
