"""Votes and verifiers against enumeration and simulation, prices against single steps."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch

from llmbook.config import ModelConfig
from llmbook.costs.flops import forward_flops
from llmbook.foundations.evaluation import pass_at_k
from llmbook.foundations.votes import (
    answer_flops,
    best_of_n_accuracy,
    chains_for_the_price,
    checked_accuracy,
    majority_at_n,
    shared_luck,
    vote_accuracy,
)

# votes


@pytest.mark.parametrize("probabilities", [[0.6, 0.4], [0.4, 0.35, 0.25], [0.1, 0.5, 0.4, 0.0]])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_a_vote_wins_as_often_as_all_outcomes_say(probabilities, n):
    total = 0.0
    for outcome in product(range(len(probabilities)), repeat=n):
        votes = [outcome.count(answer) for answer in range(len(probabilities))]
        if votes[0] == max(votes):
            total += math.prod(probabilities[a] for a in outcome) / votes.count(max(votes))
    assert vote_accuracy(probabilities, num_samples=n) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.7])
def test_condorcet(p):
    """Two answers: a binomial tail for odd n, and a further, even voter changes nothing."""
    for n in (1, 7, 39, 101):
        tail = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n // 2 + 1, n + 1))
        assert vote_accuracy([p, 1 - p], num_samples=n) == pytest.approx(tail, abs=1e-9)
        assert vote_accuracy([p, 1 - p], num_samples=n + 1) == pytest.approx(tail, abs=1e-9)


def test_not_one_half_but_the_most_frequent_mistake_is_the_threshold():
    assert vote_accuracy([0.3] + [0.1] * 7, num_samples=100) > 0.99
    assert vote_accuracy([0.4, 0.5, 0.1], num_samples=100) < 0.2


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 3), (6, 4), (7, 7)])
def test_majority_at_n_is_the_share_of_draws_with_a_right_majority(n, c):
    for k in range(1, n + 1, 2):
        draws = list(combinations([1] * c + [0] * (n - c), k))
        share = sum(2 * sum(draw) > k for draw in draws) / len(draws)
        assert majority_at_n(n, c, n=k) == pytest.approx(share, abs=1e-15)


def test_majority_at_n_is_unbiased():
    n, p = 12, 0.4
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in (1, 3, 7):
        mean = sum(w * majority_at_n(n, c, n=k) for c, w in enumerate(weights))
        assert mean == pytest.approx(vote_accuracy([p, 1 - p], num_samples=k), abs=1e-12)


def test_shared_luck_of_beta_rates_is_known():
    """Rates from Beta(a, b) have variance p (1 - p) / (a + b + 1)."""
    generator = np.random.default_rng(0)
    counts = generator.binomial(20, generator.beta(1.0, 2.0, size=200_000))
    assert shared_luck(counts.tolist(), num_samples=20) == pytest.approx(1 / 4, abs=0.005)
    alike = generator.binomial(20, 0.3, size=200_000)
    assert shared_luck(alike.tolist(), num_samples=20) == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("n", [0, 151])
def test_votes_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match=f"num_samples {n} is not between 1 and 150"):
        vote_accuracy([0.5, 0.5], num_samples=n)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"probabilities add up to 0.9, not to 1"):
        vote_accuracy([0.5, 0.4], num_samples=3)
    with pytest.raises(ValueError, match="n 4 is not odd and between 1 and num_samples 9"):
        majority_at_n(9, 3, n=4)


# verifiers


@pytest.mark.parametrize(("t", "f"), [(0.9, 0.2), (0.5, 0.5), (1.0, 0.0), (0.2, 0.6)])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_a_checked_answer_is_right_as_often_as_simulated(t, f, n):
    generator = torch.Generator().manual_seed(1)
    p, trials = 0.35, 60_000
    right = torch.rand(trials, n, generator=generator) < p
    accepted = torch.rand(trials, n, generator=generator) < torch.where(right, t, f)
    eligible = accepted | ~accepted.any(1, keepdim=True)
    chosen = (torch.rand(trials, n, generator=generator) * eligible).argmax(1)
    share = right.gather(1, chosen[:, None]).double().mean().item()
    found = checked_accuracy(p, num_samples=n, true_positive=t, false_positive=f)
    assert found == pytest.approx(share, abs=0.008)


def test_a_perfect_verifier_gives_pass_at_n():
    """Against the mean of the unbiased estimator of pass@k, which stands on another page."""
    p, drawn = 0.2, 30
    weights = [math.comb(drawn, c) * p**c * (1 - p) ** (drawn - c) for c in range(drawn + 1)]
    for n in (1, 5, 20):
        coverage = sum(w * pass_at_k(drawn, c, k=n) for c, w in enumerate(weights))
        found = checked_accuracy(p, num_samples=n, true_positive=1.0, false_positive=0.0)
        assert found == pytest.approx(coverage, abs=1e-12)


@pytest.mark.parametrize("wrong_spread", [1.0, 1.5])
def test_the_best_of_n_is_right_as_often_as_simulated(wrong_spread):
    generator = torch.Generator().manual_seed(2)
    p, n, trials = 0.3, 20, 100_000
    right = torch.rand(trials, n, generator=generator) < p
    noise = torch.randn(trials, n, generator=generator)
    scores = torch.where(right, 1.5 + noise, wrong_spread * noise)
    share = right.gather(1, scores.argmax(1, keepdim=True)).double().mean().item()
    found = best_of_n_accuracy(p, num_samples=n, gap=1.5, wrong_spread=wrong_spread)
    assert found == pytest.approx(share, abs=0.005)


def test_scores_that_know_nothing_buy_nothing():
    for n in (1, 10, 1000):
        assert best_of_n_accuracy(0.3, num_samples=n, gap=0.0) == pytest.approx(0.3, abs=1e-3)


def test_with_wilder_wrong_scores_there_is_a_peak():
    found = [
        best_of_n_accuracy(0.3, num_samples=n, gap=2.0, wrong_spread=1.6) for n in (1, 8, 100_000)
    ]
    assert found[1] > found[0] + 0.1
    assert found[2] < found[1] - 0.3


# the price

TINY = ModelConfig(vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=64)


def test_the_price_is_the_sum_of_single_steps():
    """The prompt's pass with its causal pairs, then a pass of one token for each but the last."""
    prompt = forward_flops(TINY, seq_len=10, attention="causal").total
    steps = sum(forward_flops(TINY, seq_len=1, context_len=10 + i).total for i in range(1, 20))
    assert answer_flops(TINY, prompt_len=10, chain_len=20) == prompt + steps
    assert answer_flops(TINY, prompt_len=10, chain_len=20, num_samples=7) == prompt + 7 * steps
    assert answer_flops(TINY, prompt_len=10, chain_len=1, num_samples=7) == prompt


def test_a_model_costs_one_of_itself_and_more_of_a_smaller_one():
    wide = TINY.but(hidden_size=64, head_dim=32, intermediate_size=256, embedding_size=64)
    assert chains_for_the_price(TINY, TINY, prompt_len=10, chain_len=20) == 1
    affordable = chains_for_the_price(TINY, wide, prompt_len=10, chain_len=20)
    fewer, more = (
        answer_flops(TINY, prompt_len=10, chain_len=20, num_samples=n)
        for n in (math.floor(affordable), math.ceil(affordable))
    )
    assert fewer <= answer_flops(wide, prompt_len=10, chain_len=20) <= more
