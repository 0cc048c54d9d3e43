"""Emergence: the tasks, every score against a slow version of it, sharpness and resolution."""

from math import comb, exp

import numpy as np
import pytest
import torch

from llmbook.foundations.decoder import Decoder
from llmbook.foundations.emergence import (
    EQUALS,
    PLUS,
    additions,
    answer_loss,
    chance_of_none,
    digits_of,
    emergence_score,
    pass_rate_until,
    phone_book,
    scores,
    stored_runs,
    tiny_config,
)
from llmbook.foundations.emergence_runs import TASKS
from llmbook.foundations.language_modelling import generate

EVERY_SCORE = [
    score for task in TASKS for run in stored_runs(task, seeds=range(100)) for score in run.scores
]


@pytest.fixture(scope="module")
def asked():
    """A model at random, 40 sums of two digits, and the scores it gets on them."""
    torch.manual_seed(0)
    model = Decoder(tiny_config(12, hidden_size=16, num_layers=1, seq_len=9))
    rows = additions(40, num_digits=2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # away from uniform, so that some guesses are right
    return model, rows, scores(model, rows, answer_len=3)


# tasks


def test_every_sum_is_right_and_stands_in_its_place():
    def value(digits):
        return int("".join(str(digit) for digit in reversed(digits)))

    for row in additions(50, num_digits=3, generator=torch.Generator().manual_seed(0)).tolist():
        assert (row[3], row[7]) == (PLUS, EQUALS)
        assert value(row[:3]) + value(row[4:7]) == value(row[8:])


def test_digits_are_those_of_python():
    assert digits_of(torch.tensor([90_210]), num_digits=6).tolist() == [
        [int(digit) for digit in reversed("090210")]
    ]


def test_every_name_of_the_phone_book_is_another_and_no_syllable_is_a_digit():
    rows = phone_book(1024, num_digits=5, generator=torch.Generator().manual_seed(0))
    assert len({tuple(row[:2]) for row in rows.tolist()}) == 1024
    assert rows[:, :2].min() == 10
    assert rows[:, :2].max() == 73
    assert set(rows[:, 2:].flatten().tolist()) == set(range(10))


def test_only_the_answer_is_learned(asked):
    model, rows, _ = asked
    log_p = model(rows[:, :-1]).detach().log_softmax(-1)
    terms = [-log_p[row, place - 1, rows[row, place]] for row in range(40) for place in range(6, 9)]
    assert answer_loss(model, rows, answer_len=3).item() == pytest.approx(
        float(sum(terms)) / 120, rel=1e-5
    )


# scores


def test_exact_match_is_what_greedy_decoding_writes(asked):
    model, rows, found = asked
    written = generate(model, rows[:, :6], num_tokens=3)
    assert found.exact_match == pytest.approx((written == rows[:, 6:]).all(1).double().mean())


def test_scores_are_those_of_a_loop_over_questions(asked):
    model, rows, found = asked
    probabilities = model(rows[:, :-1]).detach().double().softmax(-1)[:, -3:]
    right = [[0.0] * 3 for _ in rows]
    whole, brier = [], 0.0
    for i, row in enumerate(rows.tolist()):
        chance = 1.0
        for j, token in enumerate(row[6:]):
            p = probabilities[i, j]
            right[i][j] = float(max(range(12), key=lambda v, p=p: p[v]) == token)
            chance *= float(p[token])
            brier += sum((float(p[v]) - (v == token)) ** 2 for v in range(12))
        whole.append(chance)
    assert found.position_accuracy == pytest.approx(np.mean(right, axis=0))
    assert found.shares == pytest.approx([sum(sum(r) == k for r in right) / 40 for k in range(4)])
    assert found.answer_probability == pytest.approx(np.mean(whole), rel=1e-4)
    assert found.loss == pytest.approx(-np.mean(np.log(whole)) / 3, rel=1e-4)
    assert found.brier == pytest.approx(brier / 120, rel=1e-4)


def test_multiple_choice_compares_with_the_three_answers_before(asked):
    model, rows, found = asked
    wins = 0
    for i in range(40):
        chances = []
        for k in range(4):  # 0 is the right answer, the others those of the three rows before it
            row = torch.cat([rows[i, :6], rows[(i - k) % 40, 6:]])
            log_p = model(row[None, :-1])[0].detach().log_softmax(-1)
            chances.append(sum(float(log_p[place - 1, row[place]]) for place in (6, 7, 8)))
        wins += chances[0] == max(chances)
    assert found.multiple_choice == pytest.approx(wins / 40)


@pytest.mark.parametrize("score", EVERY_SCORE[:: max(1, len(EVERY_SCORE) // 40)])
def test_stored_scores_obey_the_two_inequalities(score):
    n = len(score.position_accuracy)
    assert score.product <= score.power + 1e-9  # arithmetic and geometric means
    assert score.answer_probability >= exp(-n * score.loss) * (1 - 1e-3)  # Jensen
    assert sum(score.shares) == pytest.approx(1, abs=1e-4)
    of_shares = sum(k * share for k, share in enumerate(score.shares)) / n
    assert score.token_accuracy == pytest.approx(of_shares, abs=1e-3)


# sharpness and resolution


def test_the_score_of_a_curve_is_that_of_the_formula():
    ys = np.random.default_rng(0).random(9)
    expected = (ys.max() - ys.min()) / np.sqrt(np.median(np.diff(ys) ** 2))
    sign = 1 if ys.argmax() > ys.argmin() else -1
    assert emergence_score(ys.tolist()) == pytest.approx(sign * expected)
    assert emergence_score(ys[::-1].tolist()) == pytest.approx(-sign * expected)


def test_a_sharper_curve_scores_more():
    line = [i / 6 for i in range(7)]
    assert emergence_score(line) == pytest.approx(6)
    assert emergence_score([x**5 for x in line]) > 6


def test_a_zero_is_as_likely_as_the_binomial_says():
    assert chance_of_none(0.03, num_questions=100) == pytest.approx(
        1 - sum(comb(100, k) * 0.03**k * 0.97 ** (100 - k) for k in range(1, 101))
    )
    assert chance_of_none(3 / 5000, num_questions=5000) == pytest.approx(0.05, abs=1e-3)


def test_counting_until_the_passes_is_unbiased():
    p, r = 0.2, 3
    chance = {k: comb(k - 1, r - 1) * p**r * (1 - p) ** (k - r) for k in range(r, 400)}
    assert sum(chance.values()) == pytest.approx(1)
    mean = sum(c * pass_rate_until(k, num_passes=r) for k, c in chance.items())
    assert mean == pytest.approx(p)
    assert sum(c * r / k for k, c in chance.items()) > 1.1 * p


# bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: phone_book(1025, num_digits=5, generator=torch.Generator()), "num_names 1025"),
        (lambda: emergence_score([1.0]), "1 performances"),
        (lambda: emergence_score([0.0, 0.0, 0.0, 1.0]), "middle step"),
        (lambda: pass_rate_until(10, num_passes=1), "num_passes 1"),
        (lambda: pass_rate_until(2, num_passes=3), "num_passes 3"),
        (lambda: stored_runs("subtraction"), "task 'subtraction'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
