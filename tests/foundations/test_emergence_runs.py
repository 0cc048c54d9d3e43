"""The stored runs of emergence: made by the recipe that is there, and with what the page finds.

Each finding is asked of the seeds that the page shows and of the one that it does not.
"""

from itertools import islice
from math import log
from statistics import median

import numpy as np
import pytest
import torch

from llmbook.costs.parameters import parameter_count
from llmbook.foundations.emergence import (
    SHOWN_SEEDS,
    final_scores,
    stored,
    stored_runs,
    tiny_config,
)
from llmbook.foundations.emergence_runs import (
    ANSWER_LEN,
    SEEDS,
    TASKS,
    questions,
    rounded,
    trained,
    training_rows,
)


def test_every_model_is_stored_once_with_its_parameters():
    keys = [(run["task"], run["hidden_size"], run["seed"]) for run in stored()["runs"]]
    assert sorted(keys) == sorted((t, w, s) for t in TASKS for w in TASKS[t].widths for s in SEEDS)
    assert set(SHOWN_SEEDS) < set(SEEDS)
    for run in stored_runs("phone book") + stored_runs("addition"):
        recipe = TASKS[run.task]
        config = tiny_config(
            recipe.vocab_size, hidden_size=run.hidden_size, num_layers=recipe.num_layers,
            seq_len=recipe.seq_len,
        )  # fmt: skip
        assert run.parameters == parameter_count(config).total
        assert run.steps[-1] == recipe.num_steps


def test_the_first_two_hundred_steps_give_the_stored_scores_again():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, found = trained("phone book", hidden_size=8, seed=0, num_scores=1)
    torch.set_num_threads(threads)
    kept = stored_runs("phone book", seeds=[0])[0].scores[0]
    assert len(kept.position_accuracy) == ANSWER_LEN
    assert found[0].loss == pytest.approx(kept.loss, rel=0.01)
    assert found[0].position_accuracy == pytest.approx(kept.position_accuracy, abs=0.03)
    assert found[0].brier == pytest.approx(kept.brier, rel=0.01)


@pytest.mark.parametrize("seeds", [SHOWN_SEEDS, [s for s in SEEDS if s not in SHOWN_SEEDS]])
def test_the_phone_book_jumps_by_exact_match_alone(seeds):
    found = list(final_scores("phone book", seeds=seeds).values())
    exact = [median(s.exact_match for s in some) for some in found]
    token = [median(s.token_accuracy for s in some) for some in found]
    choice = [median(s.multiple_choice for s in some) for some in found]
    assert max(exact[:3]) < 0.05
    assert exact[-1] > 0.8
    assert token == sorted(token)
    assert token[2] > 1.8 * token[0]  # while exact match shows nothing
    assert choice[2] > 0.6


@pytest.mark.parametrize("seeds", [SHOWN_SEEDS, [s for s in SEEDS if s not in SHOWN_SEEDS]])
def test_errors_of_the_phone_book_come_together_and_digits_of_a_sum_differ(seeds):
    some = {
        task: [s for run in stored_runs(task, seeds=seeds) for s in run.scores if 0.01 < s.power < 0.98]
        for task in TASKS
    }  # fmt: skip
    assert median(s.exact_match / s.power for s in some["phone book"]) > 1
    assert median(s.exact_match / s.power for s in some["addition"]) < 1
    assert median(s.exact_match / s.product for s in some["addition"]) == pytest.approx(1, abs=0.1)
    assert min(s.exact_match / s.power for s in some["addition"]) < 0.3


@pytest.mark.parametrize("seeds", [SHOWN_SEEDS, [s for s in SEEDS if s not in SHOWN_SEEDS]])
def test_a_digit_of_a_sum_jumps(seeds):
    widest = [run for run in stored_runs("addition", seeds=seeds) if run.hidden_size == 64]
    assert widest
    for run in widest:
        digits = np.array([score.position_accuracy[:4] for score in run.scores])
        assert digits[0].max() < 0.25  # a tenth of the training, and hardly better than guessing
        assert np.diff(digits, axis=0).max() > 0.4  # of the 0.9 between guessing and knowing


@pytest.mark.parametrize("seeds", [SHOWN_SEEDS, [s for s in SEEDS if s not in SHOWN_SEEDS]])
def test_three_small_models_foresee_how_much_of_the_book_the_next_ones_learn(seeds):
    found = final_scores("phone book", seeds=seeds)
    learned = {size: 1 - median(s.loss for s in some) / log(10) for size, some in found.items()}
    sizes = list(learned)
    rate = learned[sizes[2]] / sizes[2]
    for size in sizes[3:6]:
        assert min(1, rate * size) == pytest.approx(learned[size], abs=0.25)
    assert 20_000 < 1 / rate < 36_000  # parameters that hold the whole book


def test_one_digit_that_is_guessed_spoils_nine_sums_in_ten():
    finals = [run.scores[-1] for run in stored_runs("addition") if run.hidden_size == 64]
    stuck = min(finals, key=lambda score: score.exact_match)
    assert sorted(stuck.position_accuracy)[1] > 0.95  # every digit but one is known
    assert stuck.exact_match == pytest.approx(min(stuck.position_accuracy), abs=0.02)
    assert stuck.power > 3 * stuck.exact_match


def test_an_epoch_of_the_phone_book_asks_every_name_once_and_batches_of_sums_are_new():
    rows = training_rows("phone book", torch.Generator().manual_seed(0))
    epoch = torch.cat(list(islice(rows, 1024 // TASKS["phone book"].batch_size))).tolist()
    assert sorted(epoch) == sorted(questions("phone book").tolist())
    sums = training_rows("addition", torch.Generator().manual_seed(0))
    first, second = islice(sums, 2)
    assert not {tuple(row) for row in first.tolist()} & {tuple(row) for row in second.tolist()}


def test_stored_numbers_keep_five_digits():
    score = stored_runs("phone book")[0].scores[0]
    wide = type(score)(**{**vars(score), "loss": 2.123456789, "position_accuracy": [1 / 3]})
    assert rounded(wide)["loss"] == 2.1235
    assert rounded(wide)["position_accuracy"] == [0.33333]
