"""Predicted recall against states that were filled, on other seeds than the page's."""

import math
from pathlib import Path

import pytest
import torch
from formula import expressions

from llmbook.foundations.attention import attention
from llmbook.foundations.recall import (
    delta_rule_age,
    expected_recall,
    median_of_largest,
    pairs_at_one_half,
)
from llmbook.foundations.recurrence import chunked, delta_chunked

PAGE = Path(__file__).parents[2] / "book/foundations/recurrence.md"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, luck):
    x = torch.randn(*shape, generator=luck, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def recalled(form, *, num_pairs, head_dim, num_values, luck):
    values = unit(num_values, head_dim, luck=luck)
    k = unit(1, 1, num_pairs, head_dim, luck=luck)
    right = torch.randperm(num_values, generator=luck)[:num_pairs]
    once = torch.zeros_like(k[..., :1])
    inputs = (k, k, values[right][None, None], once)
    state = form(*inputs, 1 + once[..., 0])[1] if form is delta_chunked else form(*inputs)[1]
    return ((k @ state)[0, 0] @ values.T).argmax(-1).eq(right)


@pytest.mark.parametrize("num_pairs", [64, 256, 512])
def test_predicted_recall_of_a_sum_is_met_on_other_seeds_than_the_page_s(num_pairs):
    shares = [
        recalled(chunked, num_pairs=num_pairs, head_dim=64, num_values=1024, luck=generator(seed))
        for seed in range(100, 106)
    ]
    measured = torch.stack(shares).double().mean()
    predicted = expected_recall(num_pairs, head_dim=64, num_values=1024)
    assert abs(measured - predicted) < 0.12


@pytest.mark.parametrize("num_pairs", [128, 256, 366, 512])
def test_predicted_recall_is_met_closely_where_no_wrong_value_was_written(num_pairs):
    shares = []
    for seed in range(500, 512):
        luck = generator(seed)
        strangers, k = unit(1023, 64, luck=luck), unit(1, 1, num_pairs, 64, luck=luck)
        v = unit(1, 1, num_pairs, 64, luck=luck)
        read = k @ chunked(k, k, v, torch.zeros_like(k[..., :1]))[1]
        shares.append(((read * v).sum(-1) > (read @ strangers.T).amax(-1)).double().mean().item())
    predicted = expected_recall(num_pairs, head_dim=64, num_values=1024)
    assert sum(shares) / len(shares) == pytest.approx(predicted, abs=0.04)


@pytest.mark.parametrize(("length", "least", "most"), [(8, 0.99, 1), (4, 0, 0.1)])
def test_a_cache_recalls_everything_if_its_keys_are_long_enough(length, least, most):
    luck = generator(600)
    values, k = unit(1024, 64, luck=luck), length * unit(1, 1, 1024, 64, luck=luck)
    right = torch.randint(1024, (1024,), generator=luck)
    answers = attention(k, k, values[right][None, None])[0, 0]
    share = (answers @ values.T).argmax(-1).eq(right).double().mean()
    assert least <= share <= most


def test_a_sum_holds_four_times_as_many_pairs_in_twice_the_width_and_the_delta_rule_twice():
    def held(form, H):
        luck = generator(200 + H)
        counts = [
            recalled(form, num_pairs=n, head_dim=H, num_values=1024, luck=luck).sum().item()
            for n in (H * H // 16, H * H // 16, H * H // 8, H * H // 8)
        ]
        return sum(counts) / len(counts)

    assert 3.4 < held(chunked, 64) / held(chunked, 32) < 5.5
    assert 2 < held(delta_chunked, 64) / held(delta_chunked, 32) < 3.4


def test_median_of_the_largest_is_met_by_half_of_all_draws():
    draws = torch.randn(4000, 200, generator=generator(7), dtype=torch.float64).amax(1)
    assert (draws < median_of_largest(200)).double().mean() == pytest.approx(0.5, abs=0.03)


def test_one_pair_is_always_recalled_and_too_many_never():
    assert expected_recall(1, head_dim=16, num_values=50_000) == pytest.approx(1, abs=1e-6)
    assert expected_recall(10**6, head_dim=16, num_values=1000) < 0.01


@pytest.mark.parametrize(("H", "C"), [(32, 1024), (64, 1024), (128, 50_257), (256, 1024)])
def test_pairs_at_one_half_solve_the_formula(H, C):
    half = eval(expressions(PAGE)["eq-half-recalled"], {"H": H, "m": median_of_largest(C)})
    assert pairs_at_one_half(H, num_values=C) == pytest.approx(half)
    assert expected_recall(round(half), head_dim=H, num_values=C) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("H", [32, 64])
def test_the_delta_rule_recalls_pairs_up_to_the_age_of_the_formula(H):
    age = eval(
        expressions(PAGE)["eq-delta-age"], {"H": H, "m": median_of_largest(1024), "log": math.log}
    )
    assert delta_rule_age(H, num_values=1024) == pytest.approx(age)
    hits = [
        recalled(delta_chunked, num_pairs=4 * H, head_dim=H, num_values=1024, luck=generator(seed))
        for seed in range(300, 316)
    ]
    share = torch.stack(hits).double().mean(0).flip(0)  # by age
    assert share.sum() == pytest.approx(age, rel=0.2)
    assert share[: round(age / 2)].mean() > 0.85
    assert share[round(2 * age) :].mean() < 0.1


@pytest.mark.parametrize("seed", [400, 401, 402])
def test_a_sum_recalls_more_than_twice_as_many_as_the_delta_rule_at_full_rate(seed):
    held = [
        recalled(form, num_pairs=256, head_dim=64, num_values=1024, luck=generator(seed)).sum()
        for form in (chunked, delta_chunked)
    ]
    assert held[0] > 2 * held[1]


def test_two_numbers_are_too_few():
    with pytest.raises(ValueError, match="head_dim 2 is below 3"):
        expected_recall(4, head_dim=2, num_values=8)
