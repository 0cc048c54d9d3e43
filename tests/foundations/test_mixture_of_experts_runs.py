"""The stored runs begin as they began, and say what the page says of them."""

from statistics import median

import pytest
import torch

from llmbook.costs.flops import forward_flops
from llmbook.costs.parameters import parameter_count
from llmbook.foundations import mixture_of_experts_runs
from llmbook.foundations.decoder import Decoder
from llmbook.foundations.mixture_of_experts_runs import (
    EVERY,
    METHODS,
    NUM_STEPS,
    judge,
    stored,
    train,
)


def runs(method):
    return [run for run in stored()["runs"] if run["method"] == method]


@pytest.mark.parametrize("method", METHODS)
def test_a_stored_run_begins_as_it_is_written(method):
    """Losses to four digits, which other processors share in the first steps."""
    _, curve = train(method, seed=0, num_steps=5)
    assert curve["losses"] == pytest.approx(runs(method)[0]["first_losses"][:5], abs=2e-3)


def test_every_method_ran_on_the_same_seeds():
    seeds = [run["seed"] for run in runs("nothing")]
    assert seeds == list(range(len(seeds)))
    assert len(seeds) >= 3
    assert all([run["seed"] for run in runs(method)] == seeds for method in METHODS)
    assert len(runs("bias")[0]["effective_experts"]) == NUM_STEPS // EVERY


def test_the_dense_models_have_the_cost_and_the_size_of_the_mixture():
    """But for the routers, of 2 layers and 64 x 8 weights each."""
    mixture, dense, wide = (METHODS[m] for m in ("nothing", "dense", "wide"))
    router = 2 * 64 * 8
    step = {"seq_len": 1}
    assert forward_flops(mixture, **step).total - forward_flops(dense, **step).total == 2 * router
    assert parameter_count(mixture).active - parameter_count(dense).total == router
    assert parameter_count(mixture).total - parameter_count(wide).total == router


def test_balance_holds_where_the_page_says_so_in_every_run():
    for run in runs("nothing"):
        assert run["effective_experts"][-1] < 6.5
        assert run["dropped"] > 0.2
    for method in ("loss", "bias"):
        for run in runs(method):
            assert run["effective_experts"][-1] > 7.5
            assert run["dropped"] < 0.05
    for method in ("nothing", "loss", "bias"):  # all collapse first
        assert all(min(run["effective_experts"][:10]) < 5.5 for run in runs(method))
    assert median(r["held_out"] for r in runs("wide")) < min(r["held_out"] for r in runs("bias"))


def test_a_mixture_balanced_by_a_bias_beats_its_dense_equal_and_the_others_on_every_seed():
    """And without a bias a mixture does not: the page's numbers of seeds say so."""
    held_out = {method: [run["held_out"] for run in runs(method)] for method in METHODS}
    for other in ("dense", "loss", "nothing"):
        assert all(b < o for b, o in zip(held_out["bias"], held_out[other], strict=True))
    for method in ("nothing", "loss"):
        ahead = [m < d for m, d in zip(held_out[method], held_out["dense"], strict=True)]
        assert 0 < sum(ahead) < len(ahead)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_methods_of_a_seed_read_the_same_batches(seed, monkeypatch):
    """However many weights a method draws first: else a seed would not be a pair."""
    seen = []

    def first_batch(model, data, **_):
        seen.append(next(data))
        return [0.0]

    monkeypatch.setattr(mixture_of_experts_runs, "fit", first_batch)
    for method in METHODS:
        train(method, seed=seed, num_steps=1)
    assert len(seen) == len(METHODS)
    assert all(torch.equal(batch, seen[0]) for batch in seen)


def test_a_judgement_holds_loads_that_sum_to_one_and_none_for_a_dense_model():
    torch.manual_seed(0)
    found = judge(Decoder(METHODS["bias"]), num_bytes=2500)
    assert [sum(layer) for layer in found["load"]] == pytest.approx([1, 1], abs=1e-3)
    assert 0 <= found["dropped"] < 1
    assert set(judge(Decoder(METHODS["dense"]), num_bytes=2500)) == {"held_out"}
