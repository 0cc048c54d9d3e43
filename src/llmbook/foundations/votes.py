"""What votes and verifiers make of n samples, and what the samples cost.

Page: foundations/reasoning. Papers: wang2023selfconsistency (votes), cobbe2021training (the best of n
by a verifier's score), brown2024large (coverage). The chance that one of n samples is right, pass@n,
stands in foundations/evaluation.
Left out: verifiers that are trained (training/alignment/reward_model), search within a chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from llmbook.config import ModelConfig
from llmbook.costs.flops import forward_flops

# votes


def vote_accuracy(probabilities: Sequence[float], *, num_samples: int) -> float:
    r"""The chance that the first answer has most of n independent samples, ties broken at random.

    `probabilities` are those of all answers, the right one first, the same for every sample. Summed
    over the votes c of the right answer and the number t of others that have as many,

    n! sum over c of p^c / c! sum over t of (1 / (t + 1)) [x^(n - c)] W(c, t),

    where W collects q^i x^i / i! of each wrong answer, with i below c, or equal to c for t of them.
    For two answers and odd n it is Condorcet's sum of binomial terms above n / 2.

    Raises:
        ValueError: if the probabilities do not add up to one, or for less than one sample or more
            than 150, where factorials leave the range of a double.

    >>> round(vote_accuracy([0.6, 0.4], num_samples=3), 3)  # 0.6^3 + 3 * 0.6^2 * 0.4
    0.648
    """
    if abs(sum(probabilities) - 1) > 1e-9:
        raise ValueError(f"probabilities add up to {sum(probabilities)}, not to 1")
    if not 1 <= num_samples <= 150:
        raise ValueError(f"num_samples {num_samples} is not between 1 and 150")
    n, (p, *wrong) = num_samples, probabilities
    total = 0.0
    for c in range(1, n + 1):
        ways = np.zeros((len(wrong) + 1, n - c + 1))  # tied answers, votes of the wrong ones
        ways[0, 0] = 1
        for q in wrong:
            grown = np.zeros_like(ways)
            for i in range(min(c, n - c) + 1):  # votes of this wrong answer
                tied = int(i == c)
                before = ways[: len(ways) - tied, : n - c + 1 - i]
                grown[tied:, i:] += q**i / math.factorial(i) * before
            ways = grown
        shares = ways[:, n - c] / np.arange(1, len(wrong) + 2)
        total += math.factorial(n) / math.factorial(c) * p**c * float(shares.sum())
    return total


def majority_at_n(num_samples: int, num_correct: int, *, n: int) -> float:
    """The chance that a majority of n samples is right, estimated from more samples of a question.

    For two answers and odd n: the share of all choices of n of the samples in which more than half
    are among the c right ones. Unbiased, as pass@k is (evaluation.pass_at_k), and for the same reason.

    Raises:
        ValueError: if n is even, or larger than the number of samples.

    >>> majority_at_n(4, 3, n=3)  # of four choices one has all three right ones, three have two
    1.0
    """
    if n % 2 == 0 or not 1 <= n <= num_samples:
        raise ValueError(f"n {n} is not odd and between 1 and num_samples {num_samples}")
    wrong = num_samples - num_correct
    winning = sum(
        math.comb(num_correct, right) * math.comb(wrong, n - right)
        for right in range(n // 2 + 1, n + 1)
    )
    return winning / math.comb(num_samples, n)


def shared_luck(num_correct: Sequence[int], *, num_samples: int) -> float:
    """Correlation of two samples of one question: the variance of the questions' rates over p (1 - p).

    0 if all questions are equally hard, 1 if a question's samples are all right or all wrong. The
    chance that two samples of a question are both right is the mean of c (c - 1) / (n (n - 1)).

    >>> shared_luck([4, 0, 4, 0], num_samples=4)
    1.0
    """
    n = num_samples
    p = sum(num_correct) / len(num_correct) / n
    both = sum(c * (c - 1) for c in num_correct) / len(num_correct) / (n * (n - 1))
    return (both - p * p) / (p * (1 - p))


# verifiers


def checked_accuracy(
    p: float, *, num_samples: int, true_positive: float, false_positive: float
) -> float:
    """Accuracy of an answer drawn from those that a verifier accepts, or from all if it accepts none.

    A sample is accepted with a = p t + (1 - p) f and an accepted one is right with p t / a, so
    (1 - (1 - a)^n) p t / a + (1 - a)^n p (1 - t) / (1 - a). With t = 1 and f = 0 it is pass@n;
    as n grows it ends at p t / a, whatever n is bought.

    >>> round(checked_accuracy(0.5, num_samples=3, true_positive=1.0, false_positive=0.0), 3)
    0.875
    """
    accepted = p * true_positive + (1 - p) * false_positive
    none = (1 - accepted) ** num_samples
    when_some = p * true_positive / accepted if accepted else 0.0
    when_none = p * (1 - true_positive) / (1 - accepted) if accepted < 1 else 0.0
    return (1 - none) * when_some + none * when_none


def best_of_n_accuracy(
    p: float, *, num_samples: int, gap: float, wrong_spread: float = 1.0, grid: int = 4000
) -> float:
    """The chance that the best-scored of n samples is right, if a verifier gives scores.

    Scores of right samples are normal with mean `gap` and spread 1, of wrong ones with mean 0 and
    `wrong_spread`: the integral of n p φ(s - gap) F(s)^(n - 1), with F the distribution of a
    sample's score. With wrong_spread above 1 the very best scores belong to wrong samples, so the
    accuracy rises to a peak and falls to 0.

    >>> round(best_of_n_accuracy(0.3, num_samples=1, gap=1.0), 3)
    0.3
    """
    right, wrong = NormalDist(gap, 1.0), NormalDist(0.0, wrong_spread)
    reach = 9 * max(1.0, wrong_spread) + abs(gap)
    step = 2 * reach / grid
    scores = [-reach + (i + 0.5) * step for i in range(grid)]
    return sum(
        num_samples
        * p
        * right.pdf(s)
        * (p * right.cdf(s) + (1 - p) * wrong.cdf(s)) ** (num_samples - 1)
        * step
        for s in scores
    )


# the price


def answer_flops(
    config: ModelConfig, *, prompt_len: int, chain_len: int, num_samples: int = 1
) -> int:
    """FLOPs of reading a prompt once and writing n chains after it, keys and values kept.

    The last token of a chain is chosen and need not be run, so a sample runs the chain but for one.
    """
    read = forward_flops(config, seq_len=prompt_len, attention="causal").total
    if chain_len == 1:
        return read
    written = forward_flops(
        config, seq_len=chain_len - 1, context_len=prompt_len + chain_len - 1, attention="causal"
    )
    return read + num_samples * written.total


def chains_for_the_price(
    small: ModelConfig, large: ModelConfig, *, prompt_len: int, chain_len: int
) -> float:
    """Chains that the small model writes for the FLOPs of one chain of the large one."""
    one = answer_flops(small, prompt_len=prompt_len, chain_len=chain_len)
    another = answer_flops(small, prompt_len=prompt_len, chain_len=chain_len, num_samples=2) - one
    dear = answer_flops(large, prompt_len=prompt_len, chain_len=chain_len)
    return 1 + (dear - one) / another
