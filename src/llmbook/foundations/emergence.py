"""One model, several scores: exact match jumps where the accuracy of a token rises smoothly.

Page: foundations/emergence. Papers: wei2022emergent, section 2 (the definition);
schaeffer2023emergent, section 2 (what the metric does), eq. (1) (the emergence score).
The stored runs are made by `foundations.emergence_runs`.
Left out: fits of the loss (foundations/scaling_laws), error bars (foundations/evaluation).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.evaluation import choice_log_probabilities, most_probable
from llmbook.foundations.language_modelling import IGNORED, LanguageModel, next_token_loss

SYLLABLES = 32  # a name is one of the first 32 and one of the second: 1,024 names
PLUS, EQUALS = 10, 11  # behind the ten digits
SHOWN_SEEDS = range(3)  # the page prints these; the tests repeat its findings on others

# two tasks whose answers have several tokens


def phone_book(
    num_names: int, *, num_digits: int, generator: torch.Generator
) -> Int[Tensor, "names T"]:
    """Names of two syllables, each with a number drawn at random: facts, to be learned by heart.

    Raises:
        ValueError: if there are more names than pairs of syllables.

    >>> phone_book(2, num_digits=3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 5])
    """
    if not 0 < num_names <= SYLLABLES**2:
        raise ValueError(f"num_names {num_names} is not between 1 and {SYLLABLES**2}")
    name = torch.arange(num_names)
    syllables = torch.stack([10 + name // SYLLABLES, 10 + SYLLABLES + name % SYLLABLES], dim=1)
    return torch.cat(
        [syllables, torch.randint(10, (num_names, num_digits), generator=generator)], dim=1
    )


def digits_of(numbers: Int[Tensor, " B"], *, num_digits: int) -> Int[Tensor, "B digits"]:
    """Decimal digits of each number, the units first, zeros behind.

    >>> digits_of(torch.tensor([407]), num_digits=4).tolist()
    [[7, 0, 4, 0]]
    """
    return numbers[:, None] // 10 ** torch.arange(num_digits) % 10


def additions(
    num_problems: int, *, num_digits: int, generator: torch.Generator
) -> Int[Tensor, "B T"]:
    """Random sums: digits of a, plus, digits of b, equals, digits of a + b, always the units first.

    The sum has one digit more than its terms, so a row has 3 `num_digits` + 3 tokens.

    >>> additions(1, num_digits=2, generator=torch.Generator().manual_seed(3)).shape
    torch.Size([1, 9])
    """
    terms = torch.randint(10**num_digits, (2, num_problems), generator=generator)
    a, b = (digits_of(term, num_digits=num_digits) for term in terms)
    plus, equals = (torch.full((num_problems, 1), sign) for sign in (PLUS, EQUALS))
    return torch.cat([a, plus, b, equals, digits_of(terms.sum(0), num_digits=num_digits + 1)], 1)


def tiny_config(vocab_size: int, *, hidden_size: int, num_layers: int, seq_len: int) -> ModelConfig:
    """A small decoder with LLaMA's layers (RMSNorm, SwiGLU, no biases) and learned positions."""
    return ModelConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers,
        num_heads=hidden_size // 8, max_seq_len=seq_len, intermediate_size=2 * hidden_size,
        norm="rms_norm", activation="silu", gated=True, attention_bias=False,
        attention_output_bias=False, mlp_bias=False,
    )  # fmt: skip


def answer_loss(
    model: LanguageModel, rows: Int[Tensor, "B T"], *, answer_len: int
) -> Float[Tensor, ""]:
    """Mean of -ln p over the last `answer_len` tokens of each row; the others are only read."""
    labels = rows.clone()
    labels[:, :-answer_len] = IGNORED
    return next_token_loss(model, rows, labels=labels)


# scores


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one model is worth on one set of questions, under several metrics.

    Fields: accuracy of each token of the answer, given the right ones before it; share of the
    questions with 0, 1, ... n right tokens; mean of -ln p over the answers' tokens (nats); Brier
    score of a token; mean probability of the whole right answer; share of the questions whose
    answer is likelier than three others' answers.
    """

    position_accuracy: Sequence[float]
    shares: Sequence[float]
    loss: float
    brier: float
    answer_probability: float
    multiple_choice: float

    @property
    def exact_match(self) -> float:
        """Share of the answers right in every token. Greedy decoding writes just these."""
        return self.shares[-1]

    @property
    def token_accuracy(self) -> float:
        """Mean of the positions' accuracies."""
        return sum(self.position_accuracy) / len(self.position_accuracy)

    @property
    def power(self) -> float:
        """Exact match if all tokens were alike and independent: token accuracy to the n-th."""
        return self.token_accuracy ** len(self.position_accuracy)

    @property
    def product(self) -> float:
        """Exact match if the tokens were independent: the positions' accuracies multiplied."""
        return math.prod(self.position_accuracy)


@torch.no_grad()
def scores(model: LanguageModel, rows: Int[Tensor, "B T"], *, answer_len: int) -> Scores:
    """Every score from the logits of one pass, and multiple choice from three passes more.

    The three wrong choices of a question are the answers of the three rows before it.
    """
    logits = model(rows[:, :-1])[:, -answer_len:]  # B n V
    answers = rows[:, -answer_len:]
    right = logits.argmax(-1) == answers  # B n
    probabilities = logits.softmax(-1)
    log_p = logits.log_softmax(-1).gather(-1, answers[..., None]).squeeze(-1)
    truth = nn.functional.one_hot(answers, logits.shape[-1])
    wrong = [torch.cat([rows[:, :-answer_len], answers.roll(i, dims=0)], 1) for i in (1, 2, 3)]
    is_choice = (torch.arange(rows.shape[1]) >= rows.shape[1] - answer_len).expand(rows.shape)
    choices = [choice_log_probabilities(model(row), row, is_choice) for row in (rows, *wrong)]
    counts = torch.bincount(right.sum(-1), minlength=answer_len + 1)
    return Scores(
        position_accuracy=right.double().mean(0).tolist(),
        shares=(counts.double() / len(rows)).tolist(),
        loss=-log_p.mean().item(),
        brier=(probabilities - truth).square().sum(-1).mean().item(),
        answer_probability=log_p.double().sum(-1).exp().mean().item(),
        multiple_choice=(most_probable(torch.stack(choices, 1)) == 0).double().mean().item(),
    )


def emergence_score(performances: Sequence[float]) -> float:
    """How much a curve over growing models rises at once: schaeffer2023emergent, eq. (1).

    +- (max - min) / sqrt(median of the squared steps), negative if the best comes before the worst.
    A straight line of n points scores n - 1; one jump in a flat curve scores without bound.

    Raises:
        ValueError: if there are fewer than two performances, or the middle step is zero.

    >>> emergence_score([0.0, 0.25, 0.5, 0.75, 1.0])
    4.0
    """
    if len(performances) < 2:
        raise ValueError(f"{len(performances)} performances have no step; give at least 2")
    squares = [(b - a) ** 2 for a, b in pairwise(performances)]
    if not (step := math.sqrt(median(squares))):
        raise ValueError(f"the middle step of {list(performances)} is zero; the score is infinite")
    best, worst = max(performances), min(performances)
    rises = performances.index(best) > performances.index(worst)
    return (best - worst) / step * (1 if rises else -1)


# what a finite test cannot see


def chance_of_none(pass_rate: float, *, num_questions: int) -> float:
    """How often a test of so many independent questions shows not one pass: (1 - p)^m.

    >>> round(chance_of_none(0.001, num_questions=1000), 2)
    0.37
    """
    return (1 - pass_rate) ** num_questions


def pass_rate_until(num_samples: int, *, num_passes: int) -> float:
    """Pass rate, estimated without bias from the samples it took to see `num_passes` passes.

    (r - 1) / (K - 1) for the r-th pass at sample K; the nearer r / K is a little too high on
    average. Sampling until something passes resolves any pass rate: hu2024predicting.

    Raises:
        ValueError: unless 2 <= num_passes <= num_samples.

    >>> pass_rate_until(2001, num_passes=3)
    0.001
    """
    if not 2 <= num_passes <= num_samples:
        raise ValueError(f"num_passes {num_passes} is not between 2 and num_samples {num_samples}")
    return (num_passes - 1) / (num_samples - 1)


# the stored runs


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model of the stored family, scored while it was trained."""

    task: str
    hidden_size: int
    seed: int
    parameters: int
    steps: Sequence[int]
    scores: Sequence[Scores]


@cache
def stored() -> dict[str, Any]:
    """The file of runs with its command, date, processor and CPU seconds."""
    text = (files("llmbook.foundations") / "emergence_runs.json").read_text("utf8")
    data: dict[str, Any] = json.loads(text)
    return data


def stored_runs(task: str, *, seeds: Sequence[int] = SHOWN_SEEDS) -> list[Run]:
    """The runs of a task, "phone book" or "addition", from the narrowest model to the widest.

    Raises:
        ValueError: if nothing is stored under the name.
    """
    found = [
        Run(**{**run, "scores": [Scores(**score) for score in run["scores"]]})
        for run in stored()["runs"]
        if run["task"] == task and run["seed"] in seeds
    ]
    if not found:
        raise ValueError(f"task {task!r} with seeds {list(seeds)} is not stored")
    return sorted(found, key=lambda run: (run.hidden_size, run.seed))


def final_scores(task: str, *, seeds: Sequence[int] = SHOWN_SEEDS) -> dict[int, list[Scores]]:
    """Parameters -> scores after the last step, one for each seed."""
    found: dict[int, list[Scores]] = {}
    for run in stored_runs(task, seeds=seeds):
        found.setdefault(run.parameters, []).append(run.scores[-1])
    return found
