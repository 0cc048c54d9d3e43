"""The router and the experts against a loop over tokens, transformers, a binomial and laws.

Against transformers' Mixtral and DeepSeek-V3 whole models are compared in test_decoder.py.
"""

import math
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from formula import expressions
from torch import nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llmbook.config import ModelConfig
from llmbook.costs.parameters import parameter_count
from llmbook.foundations.mixture_of_experts import (
    MixtureOfExperts,
    RouterScores,
    effective_experts,
    expected_dropped_share,
    expert_capacity,
    expert_choice,
    load,
    load_balancing_loss,
    recorded_scores,
    route,
    router_z_loss,
    update_bias,
    within_capacity,
)

PAGE = Path(__file__).parents[2] / "book" / "foundations" / "mixture_of_experts.md"


def scores_of(num_tokens, num_experts, *, seed=0, skew=0.0):
    """Normal scores, and a preference for low numbers."""
    noise = torch.randn(
        num_tokens, num_experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return noise - skew * torch.arange(num_experts)


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


@pytest.mark.parametrize("router", ["softmax", "top_softmax", "sigmoid"])
def test_weights_are_what_each_paper_writes_down(router):
    """fedus2022switch, eq. (2); jiang2024mixtral, 2.1; deepseekai2024deepseekv3, eq. (12) to (16)."""
    scores, bias = scores_of(40, 8), torch.linspace(-0.2, 0.2, 8, dtype=torch.float64)
    weights, experts = route(scores, experts_per_token=3, router=router, bias=bias, scale=2.5)
    for row, z in enumerate(scores.tolist()):
        total = sum(map(math.exp, z))
        worth = [1 / (1 + math.exp(-x)) if router == "sigmoid" else math.exp(x) / total for x in z]
        best = sorted(range(8), key=lambda e, worth=worth: -worth[e] - bias[e].item())[:3]
        assert experts[row].tolist() == best
        scaled = 1 if router == "softmax" else sum(worth[e] for e in best)
        expected = [2.5 * worth[e] / scaled for e in best]
        assert weights[row].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_bias_changes_choices_and_no_weight(seed):
    scores = scores_of(30, 6, seed=seed)
    bias = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0, -9.0], dtype=torch.float64)
    weights, experts = route(scores, experts_per_token=2, router="softmax", bias=bias)
    assert (experts == 2).any(-1).all()
    assert not (experts == 5).any()
    torch.testing.assert_close(weights, scores.softmax(-1).gather(-1, experts))


def test_experts_come_from_the_groups_whose_two_best_are_best():
    """deepseekai2024deepseekv3, section 2.1.2, by hand for each token."""
    scores = scores_of(50, 12)
    _, experts = route(
        scores, experts_per_token=4, router="sigmoid", num_groups=4, groups_per_token=2
    )
    _, free = route(scores, experts_per_token=4, router="sigmoid")
    assert (experts.sort(-1).values != free.sort(-1).values).any()
    for row, worth in enumerate(scores.sigmoid().tolist()):
        groups = [range(3 * g, 3 * g + 3) for g in range(4)]
        rank = [sum(sorted((worth[e] for e in group), reverse=True)[:2]) for group in groups]
        open_groups = sorted(range(4), key=lambda g, rank=rank: -rank[g])[:2]
        allowed = [e for g in open_groups for e in groups[g]]
        assert experts[row].tolist() == sorted(allowed, key=lambda e, w=worth: -w[e])[:4]


def test_a_shared_network_is_added_for_every_token():
    moe = layer()
    alone = moe(hidden := torch.randn(2, 7, 6, dtype=torch.float64))
    moe.shared = nn.Linear(6, 6).double()
    torch.testing.assert_close(moe(hidden), alone + moe.shared(hidden))


def test_a_router_s_bias_has_no_gradient_and_no_part_in_its_scores():
    router = RouterScores(6, 4, bias=True)
    hidden = torch.randn(3, 6)
    before = router(hidden)
    router.bias += 5
    assert torch.equal(router(hidden), before)
    assert not router.bias.requires_grad
    assert RouterScores(6, 4, bias=False).bias is None


def test_scores_are_recorded_layer_by_layer_and_no_longer_afterwards():
    model = nn.Sequential(layer(seed=1), layer(seed=2))
    hidden = torch.randn(2, 7, 6, dtype=torch.float64)
    with recorded_scores(model) as scores:
        model(hidden)
    assert len(scores) == 2
    torch.testing.assert_close(scores[0], model[0].router(hidden.flatten(0, 1)))
    model(hidden)
    assert len(scores) == 2


@pytest.mark.parametrize("seed", range(8))
def test_places_are_given_as_a_queue_gives_them(seed):
    """lepikhin2021gshard, algorithm 1: all first choices, token by token, then all second ones."""
    draw = random.Random(seed)
    E, k, capacity = draw.randint(2, 6), draw.randint(1, 2), draw.randint(1, 9)
    _, experts = route(scores_of(20, E, seed=seed, skew=0.5), experts_per_token=k)
    kept, served = within_capacity(experts, num_experts=E, capacity=capacity), Counter()
    for place in range(k):
        for token in range(20):
            expert = experts[token, place].item()
            assert kept[token, place].item() == (served[expert] < capacity)
            served[expert] += 1


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "factor", "expected"),
    [(6, 3, 1, 1.0, 2), (6, 3, 1, 1.5, 3), (4096, 8, 2, 1.25, 1280), (10, 4, 1, 1.0, 3)],
)
def test_capacity_is_the_mean_times_the_factor_rounded_up(tokens, experts, k, factor, expected):
    """fedus2022switch, figure 3: six tokens and three experts give 2 places, or 3 at a factor of 1.5."""
    found = expert_capacity(
        tokens, num_experts=experts, experts_per_token=k, capacity_factor=factor
    )
    assert found == expected


@pytest.mark.parametrize(("n", "E", "k"), [(64, 8, 1), (256, 8, 2), (1024, 64, 6)])
@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_the_predicted_drops_are_a_sum_over_the_binomial_and_what_a_fair_router_drops(
    n, E, k, factor
):
    size = {"num_experts": E, "experts_per_token": k}
    capacity = expert_capacity(n, **size, capacity_factor=factor)
    p = Fraction(k, E)
    by_hand = sum(
        (x - capacity) * math.comb(n, x) * p**x * (1 - p) ** (n - x)
        for x in range(capacity + 1, n + 1)
    ) / (n * p)
    predicted = expected_dropped_share(n, **size, capacity=capacity)
    assert predicted == pytest.approx(float(by_hand), rel=1e-9)
    dropped = []
    for seed in range(30):
        _, experts = route(scores_of(n, E, seed=seed), experts_per_token=k)
        dropped.append(
            1 - within_capacity(experts, num_experts=E, capacity=capacity).double().mean()
        )
    measured, error = torch.stack(dropped).mean(), torch.stack(dropped).std() / 30**0.5
    assert abs(measured - predicted) < 4 * error


@pytest.mark.parametrize(("n", "E", "k"), [(4096, 8, 2), (65_536, 256, 8)])
def test_at_the_mean_the_drop_is_the_root_of_the_page(n, E, k):
    """E max(X - m, 0) = sigma / sqrt(2 pi) for a normal variable: half a standard deviation's 0.8."""
    mean = n * k / E
    found = expected_dropped_share(n, num_experts=E, experts_per_token=k, capacity=round(mean))
    assert found == pytest.approx(((1 - k / E) / (2 * math.pi * mean)) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_balancing_loss_is_that_of_transformers_over_k(k):
    """transformers sums over the k choices, so its uniform value is k; fedus2022switch has k = 1."""
    scores = scores_of(100, 6, skew=0.4)
    _, experts = route(scores, experts_per_token=k)
    theirs = load_balancing_loss_func((scores,), num_experts=6, top_k=k)
    assert load_balancing_loss(scores, experts).item() == pytest.approx(theirs.item() / k, rel=1e-6)


def test_the_balancing_loss_is_one_at_uniform_loads_or_shares_and_e_at_a_collapse():
    even = torch.arange(8).repeat(5)[:, None]
    assert load_balancing_loss(scores_of(40, 8), even).item() == pytest.approx(1)
    scores = scores_of(40, 8, skew=100)
    assert load_balancing_loss(scores, route(scores, experts_per_token=1)[1]).item() == (
        pytest.approx(8)
    )
    flat = torch.zeros(40, 8, dtype=torch.float64)
    assert load_balancing_loss(flat, torch.zeros(40, 1, dtype=torch.long)).item() == (
        pytest.approx(1)
    )


def test_the_balancing_loss_can_fall_below_its_value_at_uniform():
    """Six tokens choose expert 0 narrowly, four choose expert 1 surely: E sum f P = 0.92."""
    shares = torch.tensor([[0.51, 0.49]] * 6 + [[1e-9, 1 - 1e-9]] * 4, dtype=torch.float64)
    scores = shares.log()
    value = load_balancing_loss(scores, route(scores, experts_per_token=1)[1])
    assert value.item() == pytest.approx(2 * (0.6 * 0.306 + 0.4 * 0.694), abs=1e-6)


def test_the_gradient_of_the_balancing_loss_is_the_formula_of_the_page():
    """E / n p_e (f_e - sum_j f_j p_j) for the score of expert e at each of n tokens."""
    scores = scores_of(30, 5, skew=0.3).requires_grad_()
    _, experts = route(scores, experts_per_token=2)
    load_balancing_loss(scores, experts).backward()
    p, f = scores.detach().softmax(-1), load(experts, num_experts=5).double()
    expected = 5 / 30 * p * (f - (p * f).sum(-1, keepdim=True))
    torch.testing.assert_close(scores.grad, expected, rtol=1e-6, atol=1e-9)


def test_the_z_loss_is_that_of_its_formula_and_shrinks_with_the_scores():
    """zoph2022stmoe, eq. (5); at scores of zero it is (ln E)²."""
    scores = scores_of(20, 7)
    by_hand = sum(math.log(sum(map(math.exp, row))) ** 2 for row in scores.tolist()) / 20
    assert router_z_loss(scores).item() == pytest.approx(by_hand, rel=1e-12)
    assert router_z_loss(torch.zeros(3, 7)).item() == pytest.approx(math.log(7) ** 2)


def test_the_bias_moves_by_the_rate_against_the_load():
    """wang2024auxiliarylossfree, algorithm 1: by the sign of what lacks to the mean."""
    bias, experts = torch.zeros(4), torch.tensor([[0, 1], [0, 2], [0, 1], [0, 1]])
    update_bias(bias, experts, rate=0.25)  # loads 4, 3, 1, 0 of a mean of 2
    assert bias.tolist() == [-0.25, -0.25, 0.25, 0.25]


def test_the_bias_alone_evens_out_a_skewed_router():
    scores, bias = scores_of(400, 8, skew=0.5), torch.zeros(8, dtype=torch.float64)
    before = load(route(scores, experts_per_token=2, bias=bias)[1], num_experts=8)
    for _ in range(400):
        update_bias(bias, route(scores, experts_per_token=2, bias=bias)[1], rate=0.002)
    after = load(route(scores, experts_per_token=2, bias=bias)[1], num_experts=8)
    assert before.max() > 0.35
    assert (after - 1 / 8).abs().max() < 0.03


def test_effective_experts_counts_even_ones_and_ignores_idle_ones():
    assert effective_experts(torch.full((8,), 1 / 8)) == pytest.approx(8)
    assert effective_experts(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1)


def test_experts_that_choose_are_full_and_look_ahead():
    scores = scores_of(24, 4, skew=1.0)
    weights, tokens = expert_choice(scores, capacity=6)
    assert tokens.shape == (4, 6)
    assert all(len(set(row)) == 6 for row in tokens.tolist())
    shares = scores.softmax(-1)
    for e in range(4):
        best = sorted(range(24), key=lambda t, e=e: -shares[t, e].item())[:6]
        assert tokens[e].tolist() == best
        torch.testing.assert_close(weights[e], shares[best, e])
    first = {(e, t) for e, row in enumerate(tokens.tolist()) for t in row if t < 12}
    half = expert_choice(scores[:12], capacity=3)[1]
    assert first != {(e, t) for e, row in enumerate(half.tolist()) for t in row}


@pytest.mark.parametrize("seed", range(10))
def test_what_a_token_passes_by_is_the_formula_of_the_page(seed):
    draw = random.Random(seed)
    dense, letters = draw.randint(0, 3), {letter: draw.randint(3, 50) for letter in "DFLE"}
    letters["k"] = draw.randint(1, letters["E"])
    count = parameter_count(
        ModelConfig(
            vocab_size=7,
            hidden_size=letters["D"],
            num_layers=letters["L"] + dense,
            num_heads=1,
            max_seq_len=5,
            gated=True,
            mlp_bias=False,
            num_experts=letters["E"],
            experts_per_token=letters["k"],
            expert_intermediate_size=letters["F"],
            num_dense_layers=dense,
            num_shared_experts=draw.randint(0, 2),
        )
    )
    assert count.total - count.active == eval(expressions(PAGE)["eq-moe-passed-by"], letters)
