"""Ratings from pairwise votes: Elo's update, the Bradley-Terry model, and a biased judge.

Page: foundations/evaluation. Papers: bradley1952rank; chiang2023elo and chiang2024chatbot, the
Arena's change from the one to the other; zheng2023judging, section 3.4.
Left out: models whose strength changes with time, and ties with a parameter of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ELO_PER_NAT = 400 / math.log(10)  # rating points for a factor e in the odds


@dataclass(frozen=True)
class Votes:
    """Pairwise votes: the two models of each, and the first one's score.

    Attributes:
        first: number of the model shown first.
        second: number of the model shown second.
        score: 1 where the first won, 0 where the second did, 1/2 for a tie.
    """

    first: Int[Tensor, " votes"]
    second: Int[Tensor, " votes"]
    score: Float[Tensor, " votes"]

    def __post_init__(self) -> None:
        """Hold the rules.

        Raises:
            ValueError: if a model meets itself, or a score is not between 0 and 1.
        """
        if (self.first == self.second).any():
            raise ValueError("first and second are the same model in a vote; they must differ")
        if ((self.score < 0) | (self.score > 1)).any():
            raise ValueError(f"score {self.score.max():g} or another is not between 0 and 1")

    def at(self, places: Int[Tensor, " chosen"]) -> Votes:
        """The votes at these places: another order, a part, or a resample."""
        return Votes(self.first[places], self.second[places], self.score[places])


def expected_score(
    rating: Float[Tensor, "*#shape"], opponent: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*#shape"]:
    """What a player of this rating scores on average: 1 / (1 + 10^((opponent - rating) / 400)).

    >>> round(expected_score(torch.tensor(1227.0), torch.tensor(1130.0)).item(), 2)
    0.64
    """
    return torch.sigmoid((rating - opponent) / ELO_PER_NAT)


def online_elo(
    votes: Votes, *, num_models: int, step: float = 4.0, start: float = 1000.0
) -> Float[Tensor, " models"]:
    """Ratings after each vote has moved its two models by step (score - expected score).

    What one gains the other loses, so the mean stays at `start`. The result depends on the order
    of the votes. The Arena's first leaderboards used a step of 4.
    """
    ratings = [start] * num_models
    for a, b, score in zip(
        votes.first.tolist(), votes.second.tolist(), votes.score.tolist(), strict=True
    ):
        surprise = score - 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400))
        ratings[a] += step * surprise
        ratings[b] -= step * surprise
    return torch.tensor(ratings, dtype=torch.float64)


def win_matrix(votes: Votes, *, num_models: int) -> Float[Tensor, "models models"]:
    """How often row beat column; a tie is half a win for each."""
    wins = torch.zeros(num_models, num_models, dtype=torch.float64)
    wins.index_put_((votes.first, votes.second), votes.score.double(), accumulate=True)
    wins.index_put_((votes.second, votes.first), 1 - votes.score.double(), accumulate=True)
    return wins


def bradley_terry(
    wins: Float[Tensor, "*batch models models"], *, mean: float = 1000.0, tolerance: float = 1e-9
) -> Float[Tensor, "*batch models"]:
    """Maximum-likelihood ratings, in Elo points: P(i beats j) = s_i / (s_i + s_j), bradley1952rank.

    The gradient in the log-strengths is wins less expected wins, the Hessian the variances of
    those; Newton's method finds where the gradient vanishes, which no order of votes changes.

    Args:
        wins: how often row beat column, ties halved.
        mean: of the ratings, which the votes leave open.
        tolerance: stop where no strength moves by more.

    Raises:
        ValueError: if some model or group beat all others always, or never: no finite rating
            fits, and more votes are needed.
    """
    num_models = wins.shape[-1]
    reached = ((wins > 0).double() + torch.eye(num_models, dtype=torch.float64)).clamp(max=1)
    for _ in range(num_models.bit_length()):
        reached = (reached @ reached).clamp(max=1)
    if not reached.all():
        raise ValueError(
            "wins do not lead from each model to each other one; a rating would be infinite"
        )
    games = wins + wins.mT
    strengths = torch.zeros(wins.shape[:-1], dtype=torch.float64)
    step = torch.ones_like(strengths)
    while step.abs().max() > tolerance:
        chance = torch.sigmoid(strengths[..., :, None] - strengths[..., None, :])
        gradient = (wins - games * chance).sum(-1)
        information = games * chance * (1 - chance)
        hessian = torch.diag_embed(information.sum(-1)) - information
        # a constant added to all strengths changes nothing; the added 1 holds their sum at zero
        step = torch.linalg.solve(hessian + 1, gradient)
        # a vote or two leave the likelihood flat; a step of at most 1 does not overshoot
        strengths = strengths + step / step.abs().amax(-1, keepdim=True).clamp(min=1)
    return mean + ELO_PER_NAT * strengths


def bootstrap_ratings(
    votes: Votes, *, num_models: int, num_resamples: int, generator: torch.Generator
) -> Float[Tensor, "resamples models"]:
    """Bradley-Terry ratings of resampled votes: their spread is the ratings' uncertainty.

    Each resample draws as many votes as there are, with replacement.
    """
    num_votes = len(votes.score)
    draws = torch.randint(num_votes, (num_resamples, num_votes), generator=generator)
    return bradley_terry(
        torch.stack([win_matrix(votes.at(draw), num_models=num_models) for draw in draws])
    )


def logistic_regression(
    features: Float[Tensor, "votes features"], score: Float[Tensor, " votes"]
) -> Float[Tensor, " features"]:
    """Coefficients x that maximise the likelihood of scores with P(1) = sigmoid(features x).

    With +1 for the first model and -1 for the second it is Bradley-Terry, up to a constant; a
    further column (a one for the position, a difference of lengths) is estimated beside it.
    Columns may be redundant: the smallest coefficients are taken.

    Raises:
        ValueError: if some coefficients separate the scores, so that none are the most likely.
    """
    coefficients: Float[Tensor, " features"] = features.new_zeros(features.shape[1])
    for _ in range(100):
        chance = torch.sigmoid(features @ coefficients)
        hessian = features.T @ (features * (chance * (1 - chance))[:, None])
        step = torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ (
            features.T @ (score - chance)
        )
        coefficients = coefficients + step
        if step.abs().max() < 1e-9:
            return coefficients
    raise ValueError("features separate the scores; no finite coefficients are the most likely")


def swap_and_agree(
    score: Float[Tensor, " questions"], swapped: Float[Tensor, " questions"]
) -> Float[Tensor, " questions"]:
    """The first answer's score from two verdicts, a tie unless both orders agree.

    zheng2023judging, section 3.4.

    Args:
        score: 1 where the answer won when it stood first, 0 where it lost, 1/2 for a tie.
        swapped: the same answer's score when it stood second.
    """
    return torch.where(score == swapped, score, 0.5)
