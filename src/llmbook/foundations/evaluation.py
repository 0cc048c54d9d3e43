"""Scores and their error bars: pass@k, multiple choice, the standard error of a mean.

Page: foundations/evaluation. Papers: chen2021evaluating, eq. (1); brown2020language, section 2.4;
miller2024adding. Ratings from pairwise votes stand in `ratings`.
Left out: running a benchmark, and finding contaminated questions (data/decontamination).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# one model's score


def pass_at_k(num_samples: int, num_correct: int, *, k: int) -> float:
    """The chance that at least one of k samples passes, estimated from n samples of which c pass.

    1 - C(n - c, k) / C(n, k), the share of all choices of k samples with a correct one among them;
    its mean is 1 - (1 - p)^k whatever the pass rate p (chen2021evaluating, eq. 1).

    Raises:
        ValueError: unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples.

    >>> pass_at_k(4, 1, k=2)
    0.5
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"num_correct {num_correct} is not between 0 and num_samples {num_samples}"
        )
    if not 1 <= k <= num_samples:
        raise ValueError(f"k {k} is not between 1 and num_samples {num_samples}")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def choice_log_probabilities(
    logits: Float[Tensor, "choices T V"],
    tokens: Int[Tensor, "choices T"],
    is_choice: Bool[Tensor, "choices T"],
) -> Float[Tensor, " choices"]:
    """Log-probability of each choice: the sum over its own tokens, each given all before it.

    The question stands before the choice in `tokens` and is masked out; the first token of a row
    is never scored, because nothing predicts it.
    """
    log_probabilities = logits[:, :-1].log_softmax(-1)
    of_tokens = log_probabilities.gather(-1, tokens[:, 1:, None]).squeeze(-1)  # choices T-1
    return (of_tokens * is_choice[:, 1:]).sum(-1)


def most_probable(
    log_probabilities: Float[Tensor, "questions choices"],
) -> Int[Tensor, " questions"]:
    """The choice with the highest log-probability: short choices are favoured."""
    return log_probabilities.argmax(-1)


def most_probable_per_unit(
    log_probabilities: Float[Tensor, "questions choices"],
    lengths: Float[Tensor, "questions choices"],
) -> Int[Tensor, " questions"]:
    """The choice with the highest mean log-probability per token, character or byte."""
    return (log_probabilities / lengths).argmax(-1)


def most_raised(
    log_probabilities: Float[Tensor, "questions choices"],
    without_question: Float[Tensor, "questions choices"],
) -> Int[Tensor, " questions"]:
    """The choice that the question makes more likely by the largest factor.

    log P(choice | question) - log P(choice | a neutral prompt): brown2020language, section 2.4.
    """
    return (log_probabilities - without_question).argmax(-1)


# error bars


def standard_error(scores: Float[Tensor, " questions"]) -> float:
    """Standard error of the mean over questions: the sample's standard deviation over sqrt(n).

    For scores of 0 and 1 this is sqrt(p (1 - p) / (n - 1)). For two models on the same questions
    give the difference of their scores, which is the paired comparison.

    >>> round(standard_error(torch.tensor([1.0, 0.0, 1.0, 1.0])), 3)
    0.25
    """
    return float(scores.std() / math.sqrt(len(scores)))


def clustered_standard_error(
    scores: Float[Tensor, " questions"], cluster: Int[Tensor, " questions"]
) -> float:
    """Standard error of the mean where questions come in groups, as several about one passage do.

    sqrt(sum over groups of (sum of deviations)²) / n; with groups of one it is the standard error
    with n in place of n - 1.

    Args:
        scores: one for each question.
        cluster: the number of each question's group.
    """
    sums = torch.zeros(int(cluster.max()) + 1, dtype=scores.dtype)
    sums.index_add_(0, cluster, scores - scores.mean())
    return float(sums.square().sum().sqrt() / len(scores))


def num_questions(
    difference: float, *, variance: float, significance: float = 0.05, power: float = 0.8
) -> int:
    """Questions needed to tell a difference of two scores from none.

    (z(1 - significance / 2) + z(power))² variance / difference², z the normal's quantiles. For two
    models on different questions `variance` is p(1 - p) + q(1 - q); on the same questions it is
    the share on which just one of them is right, less the difference squared.

    Raises:
        ValueError: if the difference is zero: no number of questions tells nothing from nothing.

    >>> num_questions(0.01, variance=0.1)
    7849
    """
    if difference == 0:
        raise ValueError("difference 0 cannot be told from none; it must not be zero")
    z = NormalDist().inv_cdf
    return math.ceil((z(1 - significance / 2) + z(power)) ** 2 * variance / difference**2)
