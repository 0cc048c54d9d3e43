"""The stored runs: what their file says of them, and the first steps of some made again."""

import json
from dataclasses import asdict

import pytest
import torch

from llmbook.corpus import HASH_FILE
from llmbook.foundations.decoder import Decoder
from llmbook.foundations.language_modelling import card
from llmbook.foundations.scaling_laws import fit_chinchilla, stored
from llmbook.foundations.scaling_runs import (
    HELD_OUT,
    NUM_FIRST_STEPS,
    STEP_TOKENS,
    Plan,
    measured,
    plans,
    serialized,
    texts,
)
from llmbook.foundations.weights import Run

FIELDS = ("hidden_size", "num_layers", "num_steps", "seed", "rate_factor")


@pytest.fixture(scope="module")
def tokens():
    return texts()


@pytest.mark.parametrize("place", [0, 3, -1])
def test_the_first_steps_are_those_of_the_file(place, tokens):
    """Losses of bf16 products agree to their third digit on every processor."""
    known = stored()["runs"][place]
    run = Run(Plan(**{field: known[field] for field in FIELDS}).recipe, tokens[0])
    run.go_on(NUM_FIRST_STEPS)
    assert run.losses == pytest.approx(known["first_losses"], abs=0.02)


def test_the_file_tells_where_it_comes_from():
    assert stored()["command"] == "python -m llmbook.foundations.scaling_runs"
    assert stored()["corpus_sha256"] == HASH_FILE.read_text("ascii").split()[0]


def test_the_runs_are_those_that_are_planned():
    planned = [asdict(plan) for plan in plans()]
    assert [{key: run[key] for key in FIELDS} for run in stored()["runs"]] == planned


def test_no_run_reads_a_token_twice(tokens):
    assert max(plan.recipe.num_tokens for plan in plans()) < len(tokens[0])


def test_the_sizes_are_those_of_the_decoders():
    for run in stored()["runs"][:6]:
        decoder = Decoder(Plan(**{field: run[field] for field in FIELDS}).config)
        total = sum(weight.numel() for weight in decoder.parameters())
        assert run["parameters"] == total
        assert run["non_embedding"] == total - decoder.embedding.weight.numel()


def test_every_run_learned_and_the_longest_were_watched_on_the_way():
    for run in stored()["runs"]:
        assert run["num_tokens"] == run["num_steps"] * STEP_TOKENS
        assert run["held_out_loss"] < run["first_losses"][0] - 1.5
        watched = [int(count) for count in run["on_the_way"]]
        assert watched == (
            [200 * STEP_TOKENS * 2**i for i in range(3)] if run["num_steps"] == 1600 else []
        )
        assert list(run["on_the_way"].values()) == sorted(run["on_the_way"].values(), reverse=True)


def test_a_measurement_names_its_plan_and_can_be_stored(tokens):
    plan = Plan(hidden_size=16, num_layers=1, num_steps=10)
    generator = torch.Generator().manual_seed(0)
    known = measured(plan, tokens[0], torch.randint(2048, (300,), generator=generator))
    assert {key: known[key] for key in FIELDS} == {
        "hidden_size": 16, "num_layers": 1, "num_steps": 10, "seed": 0, "rate_factor": 1.0,
    }  # fmt: skip
    assert len(known["first_losses"]) == NUM_FIRST_STEPS
    assert json.loads(serialized({"command": "x"}, [known, known]))["runs"] == [known, known]


def fitted_law(size, chosen):
    rows = [[run[size], run["num_tokens"], run["held_out_loss"]] for run in chosen]
    return fit_chinchilla(torch.tensor(rows).double())


def test_the_runs_kept_aside_are_the_three_that_cost_most():
    grid = [run for run in stored()["runs"] if run["seed"] == 0 and run["rate_factor"] == 1]
    dearest = sorted(grid, key=lambda run: run["parameters"] * run["num_tokens"])[-3:]
    assert {(run["hidden_size"], run["num_steps"]) for run in dearest} == set(HELD_OUT)


def test_counting_without_tables_raises_the_exponent_whichever_run_is_left_out():
    grid = [run for run in stored()["runs"] if run["seed"] == 0 and run["rate_factor"] == 1]
    for left_out in grid[::4]:
        chosen = [run for run in grid if run is not left_out]
        counted = fitted_law("parameters", chosen).split_exponent
        assert fitted_law("non_embedding", chosen).split_exponent > counted + 0.1


def test_the_fitted_floor_lies_above_a_model_of_the_book():
    grid = [run for run in stored()["runs"] if run["seed"] == 0 and run["rate_factor"] == 1]
    assert fitted_law("parameters", grid).floor > card("small")["held_out_loss"] + 0.5
