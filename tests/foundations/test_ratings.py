"""Ratings against a logistic regression by torch's optimiser, closed forms, and laws of conservation."""

import math

import pytest
import torch

from llmbook.foundations.ratings import (
    ELO_PER_NAT,
    Votes,
    bootstrap_ratings,
    bradley_terry,
    expected_score,
    logistic_regression,
    online_elo,
    swap_and_agree,
    win_matrix,
)

TRUE = torch.tensor([1100.0, 1050.0, 1000.0, 950.0, 900.0], dtype=torch.float64)


def votes(number, seed=0, ties=0.0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(5, (number,), generator=generator)
    second = (first + torch.randint(1, 5, (number,), generator=generator)) % 5
    score = torch.bernoulli(expected_score(TRUE[first], TRUE[second]), generator=generator)
    tied = torch.rand(number, generator=generator) < ties
    return Votes(first, second, torch.where(tied, 0.5, score))


def most_likely(features, score):
    """Logistic regression by torch's quasi-Newton optimiser: knows nothing of ratings."""
    x = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([x], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    loss = torch.nn.BCEWithLogitsLoss()

    def closure():
        optimiser.zero_grad()
        value = loss(features @ x, score)
        value.backward()
        return value

    optimiser.step(closure)
    return x.detach()


def one_against_another(these):
    who = torch.eye(5, dtype=torch.float64)
    return who[these.first] - who[these.second]


# Elo


def test_expected_score_by_the_printed_formula():
    for gap in (-400.0, -30.0, 0.0, 97.0, 400.0):
        ours = expected_score(torch.tensor(1000 + gap), torch.tensor(1000.0)).item()
        assert ours == pytest.approx(1 / (1 + 10 ** (-gap / 400)), abs=1e-7)
    even = expected_score(torch.tensor([1400.0]), torch.tensor([1000.0])).double()
    assert even.item() / (1 - even.item()) == pytest.approx(10, rel=1e-5)  # odds of ten to one


@pytest.mark.parametrize(("step", "start"), [(4.0, 1000.0), (32.0, 1500.0)])
def test_elo_points_are_conserved(step, start):
    ratings = online_elo(votes(500, ties=0.2), num_models=5, step=step, start=start)
    assert ratings.mean().item() == pytest.approx(start)


def test_one_vote_between_equals_moves_both_by_half_a_step():
    win = Votes(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]))
    assert online_elo(win, num_models=3).tolist() == [1002, 998, 1000]
    assert online_elo(win, num_models=2, step=10.0, start=0.0).tolist() == [5, -5]
    tie = Votes(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))
    assert online_elo(tie, num_models=2).tolist() == [1000, 1000]


def test_elo_depends_on_the_order_and_bradley_terry_does_not():
    these = votes(1000)
    turned = these.at(torch.arange(999, -1, -1))
    apart = (online_elo(these, num_models=5) - online_elo(turned, num_models=5)).abs().max()
    assert apart > 1
    ours, theirs = (bradley_terry(win_matrix(v, num_models=5)) for v in (these, turned))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_elo_settles_at_the_predicted_floor():
    """sqrt(K s / 2 (M - 1) / M), for a step small enough that the pull is linear."""
    final = torch.stack(
        [online_elo(votes(6000, seed), num_models=5, step=8.0) for seed in range(40)]
    )
    floor = math.sqrt(8 * ELO_PER_NAT / 2 * 4 / 5)
    assert final.std(0).mean().item() == pytest.approx(floor, rel=0.15)


# Bradley-Terry


def test_wins_are_counted_and_ties_halved():
    these = Votes(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 2]), torch.tensor([1.0, 0.5, 0.0]))
    assert win_matrix(these, num_models=3).tolist() == [[0, 1.5, 0], [0.5, 0, 0], [0, 1, 0]]


def test_two_models_get_the_log_odds_of_their_votes():
    ratings = bradley_terry(torch.tensor([[0.0, 30.0], [10.0, 0.0]], dtype=torch.float64))
    assert (ratings[0] - ratings[1]).item() == pytest.approx(400 * math.log10(3), abs=1e-6)
    assert ratings.mean().item() == pytest.approx(1000)


def test_perfect_counts_give_the_ratings_back():
    """Expected wins in place of votes, unequally many per pair: the truth is most likely."""
    games = 10 + torch.arange(25.0, dtype=torch.float64).reshape(5, 5)
    games = games + games.T
    wins = games * expected_score(TRUE[:, None], TRUE[None]) * (1 - torch.eye(5))
    torch.testing.assert_close(bradley_terry(wins), TRUE, rtol=0, atol=1e-6)
    shifted = bradley_terry(wins, mean=0.0)
    torch.testing.assert_close(shifted, TRUE - 1000, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_bradley_terry_equals_a_logistic_regression(ties):
    these = votes(400, ties=ties)
    other = ELO_PER_NAT * most_likely(one_against_another(these), these.score.double())
    ours = bradley_terry(win_matrix(these, num_models=5), mean=0.0)
    torch.testing.assert_close(ours, other - other.mean(), rtol=0, atol=1e-3)


def test_expected_wins_are_the_wins():
    """The likelihood's own equation, also where few votes and long odds slow Newton down."""
    for wins in ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[0, 500, 400], [1, 0, 1], [0, 900, 0]]):
        counted = torch.tensor(wins, dtype=torch.float64)
        ratings = bradley_terry(counted)
        chance = expected_score(ratings[:, None], ratings[None])
        expected = ((counted + counted.T) * chance).sum(1)
        torch.testing.assert_close(expected, counted.sum(1), rtol=0, atol=1e-5)


def test_many_matrices_at_once_are_as_one_by_one():
    several = torch.stack([win_matrix(votes(300, seed), num_models=5) for seed in range(4)])
    for ours, wins in zip(bradley_terry(several), several, strict=True):
        torch.testing.assert_close(ours, bradley_terry(wins), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "wins",
    [
        [[0, 3, 2], [0, 0, 4], [0, 3, 0]],  # the first never lost
        [[0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 2, 0]],  # two groups that never met
    ],
)
def test_ratings_that_would_be_infinite_are_refused(wins):
    with pytest.raises(ValueError, match="infinite"):
        bradley_terry(torch.tensor(wins, dtype=torch.float64))


def test_a_circle_needs_many_steps_to_be_seen_as_one():
    ring = torch.roll(torch.eye(9, dtype=torch.float64), 1, 1)
    torch.testing.assert_close(bradley_terry(ring), torch.full((9,), 1000.0).double())


def test_bootstrap_spread_meets_fresh_votes():
    fresh = torch.stack(
        [bradley_terry(win_matrix(votes(800, seed), num_models=5)) for seed in range(300)]
    )
    generator = torch.Generator().manual_seed(0)
    resampled = bootstrap_ratings(votes(800, 999), num_models=5, num_resamples=300,
                                  generator=generator)  # fmt: skip
    assert resampled.shape == (300, 5)
    assert resampled.std(0).mean() == pytest.approx(fresh.std(0).mean().item(), rel=0.12)
    mean = bradley_terry(win_matrix(votes(800, 999), num_models=5))
    torch.testing.assert_close(resampled.mean(0), mean, rtol=0, atol=5.0)


# habits


def test_logistic_regression_with_a_column_for_the_place():
    these = votes(600)
    generator = torch.Generator().manual_seed(1)
    chance = expected_score(TRUE[these.first] + 70, TRUE[these.second])
    score = torch.bernoulli(chance, generator=generator)
    features = torch.cat([one_against_another(these), torch.ones(600, 1).double()], 1)
    ours, theirs = logistic_regression(features, score), most_likely(features, score)
    torch.testing.assert_close(ours[5], theirs[5], rtol=0, atol=1e-6)
    centred = theirs[:5] - theirs[:5].mean()
    torch.testing.assert_close(ours[:5], centred, rtol=0, atol=1e-6)
    assert ELO_PER_NAT * ours[5].item() == pytest.approx(70, abs=3 * 347 / math.sqrt(600))


def test_scores_that_are_separated_are_refused():
    features = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="separate"):
        logistic_regression(features, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))


def test_a_win_needs_both_orders():
    score = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5, 1.0])
    swapped = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 0.5])
    assert swap_and_agree(score, swapped).tolist() == [1, 0.5, 0.5, 0, 0.5, 0.5]


def test_swapping_removes_the_bonus_and_costs_twice_the_consistency():
    """Page, eq-swap: the variance after swapping is the consistent share over four."""
    generator = torch.Generator().manual_seed(0)
    quality = 1.5 * torch.randn(200_000, generator=generator)
    once = torch.bernoulli(torch.sigmoid(quality + 1), generator=generator)
    swapped = torch.bernoulli(torch.sigmoid(quality - 1), generator=generator)
    agreed = swap_and_agree(once, swapped)
    assert once.mean().item() > 0.65
    assert agreed.mean().item() == pytest.approx(0.5, abs=0.004)
    consistent = (once == swapped).float().mean().item()
    assert agreed.var().item() == pytest.approx(consistent / 4, rel=0.02)


# what is refused


def test_votes_hold_their_rules():
    zero, one = torch.tensor([0]), torch.tensor([1])
    with pytest.raises(ValueError, match="must differ"):
        Votes(zero, zero, torch.tensor([1.0]))
    for score in (1.5, -0.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Votes(zero, one, torch.tensor([score]))
