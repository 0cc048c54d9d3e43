"""Scores against enumeration, simulation and the harness's printed errors; error bars by their laws."""

import math
from itertools import combinations

import pytest
import torch
from torch.nn import functional

from llmbook.foundations.evaluation import (
    choice_log_probabilities,
    clustered_standard_error,
    most_probable,
    most_probable_per_unit,
    most_raised,
    num_questions,
    pass_at_k,
    standard_error,
)

# pass@k


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7), (8, 3)])
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(n, c):
    """Every choice of k samples, one by one."""
    for k in range(1, n + 1):
        draws = list(combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k=k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


@pytest.mark.parametrize("p", [0.03, 0.4, 0.9])
def test_pass_at_k_is_unbiased_and_the_plug_in_is_not(p):
    """The mean over c, binomial, is 1 - (1 - p)^k to rounding: no sampling error is left."""
    n = 12
    weight = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in (1, 2, 5, 12):
        truth = 1 - (1 - p) ** k
        mean = sum(w * pass_at_k(n, c, k=k) for c, w in enumerate(weight))
        plug_in = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weight))
        assert mean == pytest.approx(truth, abs=1e-13)
        assert plug_in == pytest.approx(truth, abs=1e-13) if k == 1 else plug_in < truth - 1e-13


def test_pass_at_k_needs_no_small_numbers():
    """Codex's 200 samples and k of 100: the product of 100 factors, in exact fractions."""
    product = math.prod(range(151 - 100, 151)) / math.prod(
        range(201 - 100, 201)
    )  # C(150,100)/C(200,100)
    assert pass_at_k(200, 50, k=100) == pytest.approx(1 - product, abs=1e-15)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((5, 6, 1), "num_correct 6"),
        ((5, -1, 1), "num_correct -1"),
        ((5, 2, 6), "k 6"),
        ((5, 2, 0), "k 0"),
    ],
)
def test_bad_counts_are_named(arguments, said):
    n, c, k = arguments
    with pytest.raises(ValueError, match=said):
        pass_at_k(n, c, k=k)


# multiple choice


def test_choice_log_probabilities_equal_cross_entropy():
    """torch's cross-entropy ignores the question's tokens and adds up the choice's."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 11, generator=generator, dtype=torch.float64)
    tokens = torch.randint(11, (4, 9), generator=generator)
    is_choice = torch.arange(9) >= torch.tensor([[1], [4], [8], [6]])
    labels = tokens.masked_fill(~is_choice, -100)[:, 1:]
    loss = functional.cross_entropy(logits[:, :-1].mT, labels, reduction="none").sum(-1)
    torch.testing.assert_close(choice_log_probabilities(logits, tokens, is_choice), -loss)


def test_the_first_token_is_not_scored_and_nothing_scores_zero():
    logits, tokens = torch.randn(1, 3, 5), torch.tensor([[1, 2, 3]])
    only_first = torch.tensor([[True, False, False]])
    assert choice_log_probabilities(logits, tokens, only_first).item() == 0


def test_probabilities_of_all_continuations_sum_to_one():
    """With logits that depend on the place alone: all 4^3 choices of three tokens."""
    of_place = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    tokens = torch.cartesian_prod(*[torch.arange(4)] * 3)
    tokens = torch.cat([torch.zeros(64, 1, dtype=torch.long), tokens], 1)
    is_choice = (torch.arange(4) > 0).expand(64, 4)
    logs = choice_log_probabilities(of_place.expand(64, 4, 4), tokens, is_choice)
    assert logs.exp().sum().item() == pytest.approx(1)


def test_the_three_readings_differ_as_they_should():
    sums, lengths = torch.tensor([[-2.0, -3.0, -6.0]]), torch.tensor([[1.0, 3.0, 4.0]])
    alone = torch.tensor([[-2.5, -3.2, -9.0]])  # the last is helped most by its question
    assert most_probable(sums).tolist() == [0]
    assert most_probable_per_unit(sums, lengths).tolist() == [1]
    assert most_raised(sums, alone).tolist() == [2]


def test_readings_agree_where_choices_are_alike():
    sums = -torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).double()
    plain = most_probable(sums)
    assert (most_probable_per_unit(sums, torch.full_like(sums, 3.0)) == plain).all()
    assert (most_raised(sums, torch.full_like(sums, -1.0)) == plain).all()


# error bars


def test_standard_error_of_binary_scores():
    for right, n in ((46, 164), (1, 7), (500, 1000)):
        p, scores = right / n, (torch.arange(n) < right).double()
        assert standard_error(scores) == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_standard_error_predicts_the_spread_of_means():
    generator = torch.Generator().manual_seed(0)
    runs = torch.bernoulli(torch.full((4000, 200), 0.3), generator=generator).double()
    predicted = sum(standard_error(run) for run in runs) / 4000
    assert runs.mean(1).std().item() == pytest.approx(predicted, rel=0.04)  # 3.6 of its errors


def test_paired_error_is_that_of_the_questions_that_differ():
    """sqrt((r - d^2) / (n - 1)) for r = 10 of 164 differing, d = 4 of 164."""
    paired = torch.tensor([1.0] * 7 + [-1.0] * 3 + [0.0] * 154).double()
    by_hand = math.sqrt((10 / 164 - (4 / 164) ** 2) / 163)
    assert standard_error(paired) == pytest.approx(by_hand)


def test_clusters_of_one_change_nothing_but_the_degree_of_freedom():
    scores = torch.rand(30, generator=torch.Generator().manual_seed(0)).double()
    alone = clustered_standard_error(scores, torch.randperm(30))
    assert alone == pytest.approx(standard_error(scores) * math.sqrt(29 / 30))


def test_copies_of_a_question_add_nothing():
    """Each question asked five times over is worth one: the error of the questions alone."""
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0)).double()
    copied = clustered_standard_error(
        scores.repeat_interleave(5), torch.arange(40).repeat_interleave(5)
    )
    assert copied == pytest.approx(clustered_standard_error(scores, torch.arange(40)))
    assert standard_error(scores.repeat_interleave(5)) < 0.5 * copied


def test_num_questions_meets_the_textbook():
    """16 variance / d^2 is the rule of thumb for two groups of n; ours is half of it, per variance."""
    assert num_questions(0.1, variance=1.0) == 785
    assert num_questions(0.1, variance=1.0, power=0.9) == 1051  # (1.960 + 1.282)^2 = 10.51
    assert num_questions(0.1, variance=1.0, significance=0.01) == 1168  # (2.576 + 0.842)^2 = 11.68
    assert num_questions(-0.1, variance=1.0) == num_questions(0.1, variance=1.0)


def test_the_number_of_questions_has_the_promised_power():
    generator = torch.Generator().manual_seed(0)
    n = num_questions(0.05, variance=0.2 - 0.05**2)
    draws = torch.rand(4000, n, generator=generator)
    difference = (draws < 0.125).double() - (draws > 0.925).double()  # r = 0.2, d = 0.05
    z = difference.mean(1) / (difference.std(1) / math.sqrt(n))
    assert (z.abs() > 1.96).double().mean().item() == pytest.approx(0.8, abs=0.02)


def test_no_difference_needs_no_number():
    with pytest.raises(ValueError, match="difference 0"):
        num_questions(0.0, variance=0.1)
