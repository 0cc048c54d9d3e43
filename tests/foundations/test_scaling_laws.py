"""Scaling laws: printed tables, another optimizer, brute force, and what the stored runs bear out."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from llmbook.foundations.scaling_laws import (
    CHINCHILLA_STARTS,
    KAPLAN_STARTS,
    PUBLISHED,
    REPLICATED,
    UNROUNDED,
    Chinchilla,
    as_chinchilla,
    bootstrap,
    chinchilla_law,
    fit_chinchilla,
    fit_law,
    kaplan_law,
    kaplan_loss,
    line,
    valley,
)


def noisy_runs(*, noise, seed=0):
    """Runs at Chinchilla's scale whose law is known."""
    generator = torch.Generator().manual_seed(seed)
    sizes, tokens = torch.logspace(7.6, 10, 7).double(), torch.logspace(9.5, 11.5, 4).double()
    rows = torch.cartesian_prod(sizes, tokens)
    losses = torch.tensor([REPLICATED.loss(*row) for row in rows.tolist()]).double()
    losses = losses * (1 + noise * torch.randn(len(rows), generator=generator).double())
    return torch.cat((rows, losses[:, None]), dim=1)


def huber(residuals, delta=1e-3):
    size = np.abs(residuals)
    return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()


@pytest.mark.parametrize("law", [PUBLISHED, UNROUNDED, REPLICATED])
@pytest.mark.parametrize("compute", [1e18, 5.76e23, 3e26])
def test_no_other_split_of_the_budget_has_a_lower_loss(law, compute):
    parameters, num_tokens = law.optimum(compute)
    assert 6 * parameters * num_tokens == pytest.approx(compute)
    sizes = parameters * np.logspace(-2, 2, 4001)
    losses = [law.loss(size, compute / 6 / size) for size in sizes]
    assert sizes[int(np.argmin(losses))] == pytest.approx(parameters, rel=2e-3)


def test_at_the_optimum_the_two_terms_balance():
    """alpha A / P^alpha = beta B / n^beta, the condition of Lagrange."""
    parameters, num_tokens = PUBLISHED.optimum(1e22)
    size = 0.34 * 406.4 / parameters**0.34
    assert size == pytest.approx(0.28 * 410.7 / num_tokens**0.28)


def test_kaplan_loss_has_the_limits_of_equations_1_1_and_1_2():
    assert kaplan_loss(1e9) == pytest.approx((8.8e13 / 1e9) ** 0.076)
    assert kaplan_loss(math.inf, 1e10) == pytest.approx((5.4e13 / 1e10) ** 0.095)
    assert kaplan_loss(1e9, 1e10) > max(kaplan_loss(1e9), kaplan_loss(math.inf, 1e10))


def test_kaplan_loss_takes_the_constants_of_table_2():
    """Within 2 % of endless data from 5e3 P^0.74 tokens on, eq. (4.4), to its one digit."""
    table_2 = {
        "size_scale": 6.4e13, "size_exponent": 0.076, "token_scale": 1.8e13, "token_exponent": 0.103,
    }  # fmt: skip
    for parameters in (1e6, 1e8, 1e9):
        few, many = (factor * parameters**0.74 for factor in (4.5e3, 6.5e3))
        endless = kaplan_loss(parameters, **table_2)
        assert kaplan_loss(parameters, few, **table_2) / endless > 1.02
        assert kaplan_loss(parameters, many, **table_2) / endless < 1.02


def test_the_laws_in_logarithms_are_the_laws():
    parameters, tokens = torch.tensor([1e7, 3e8]).double(), torch.tensor([2e9, 5e8]).double()
    weights = torch.tensor([math.log(1.69), math.log(406.4), 0.34, math.log(410.7), 0.28]).double()
    theirs = [
        PUBLISHED.loss(p, n) for p, n in zip(parameters.tolist(), tokens.tolist(), strict=True)
    ]
    assert chinchilla_law(weights, parameters.log(), tokens.log()).exp().tolist() == pytest.approx(
        theirs
    )
    assert as_chinchilla(weights).loss(1e7, 2e9) == pytest.approx(theirs[0])
    weights = torch.tensor([math.log(8.8e13), 0.076, math.log(5.4e13), 0.095]).double()
    theirs = [kaplan_loss(p, n) for p, n in zip(parameters.tolist(), tokens.tolist(), strict=True)]
    assert kaplan_law(weights, parameters.log(), tokens.log()).exp().tolist() == pytest.approx(
        theirs
    )


def test_a_law_without_noise_is_found_again():
    found = fit_chinchilla(noisy_runs(noise=0))
    for name in Chinchilla.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(REPLICATED, name), rel=1e-3)


def test_the_fit_is_that_of_scipys_l_bfgs():
    """Sum of Huber's losses of the logarithms, minimised by another optimizer and by hand's formula."""
    runs = noisy_runs(noise=0.004)
    log_p, log_n, log_l = runs.log().T.numpy()

    def objective(w):
        floor = np.full_like(log_p, w[0])
        predicted = np.logaddexp(np.logaddexp(floor, w[1] - w[2] * log_p), w[3] - w[4] * log_n)
        return huber(predicted - log_l)

    options = {"maxiter": 5000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-12}
    theirs = min(
        (
            minimize(lambda w: 1e4 * objective(w), start, method="L-BFGS-B", options=options)
            for start in CHINCHILLA_STARTS.numpy()
        ),
        key=lambda result: result.fun,
    )
    weights, sums = fit_law(chinchilla_law, runs, starts=CHINCHILLA_STARTS)
    best = weights[sums.argmin()]
    assert sums.min().item() == pytest.approx(objective(best.numpy()))
    assert sums.min().item() <= theirs.fun / 1e4 * (1 + 1e-4)
    assert best[[2, 4]].tolist() == pytest.approx(theirs.x[[2, 4]].tolist(), abs=2e-3)


def test_an_outlier_hardly_moves_the_fit():
    """What Huber's loss is for; with squares the same run would move it far."""
    runs = noisy_runs(noise=0)
    runs[5, 2] *= 1.5
    assert fit_chinchilla(runs).split_exponent == pytest.approx(REPLICATED.split_exponent, abs=0.01)
    weights, sums = fit_law(chinchilla_law, runs, starts=CHINCHILLA_STARTS, delta=1e3)
    squares = as_chinchilla(weights[sums.argmin()]).split_exponent
    assert abs(squares - REPLICATED.split_exponent) > 0.05


def test_samples_count_each_run_so_often():
    runs = noisy_runs(noise=0.01)
    twice = torch.cat((runs, runs[:9]))
    counts = torch.ones(1, len(runs)).double()
    counts[0, :9] = 2
    start = CHINCHILLA_STARTS[:1]
    counted, counted_sum = fit_law(chinchilla_law, runs, starts=start, samples=counts)
    repeated, repeated_sum = fit_law(chinchilla_law, twice, starts=start)
    assert counted_sum.item() == pytest.approx(repeated_sum.item())
    assert counted[0].tolist() == pytest.approx(repeated[0].tolist(), rel=1e-6)


def test_the_bootstrap_covers_the_truth_and_narrows_with_the_noise():
    widths = []
    for noise in (0.01, 0.001):
        laws = bootstrap(
            noisy_runs(noise=noise), num_samples=40, generator=torch.Generator().manual_seed(0)
        )
        low, high = np.quantile([law.split_exponent for law in laws], [0.02, 0.98])
        assert low < REPLICATED.split_exponent < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_kaplans_law_is_found_again():
    sizes, tokens = torch.logspace(6, 9, 6).double(), torch.logspace(8, 11, 5).double()
    rows = torch.cartesian_prod(sizes, tokens)
    losses = torch.tensor([kaplan_loss(p, n) for p, n in rows.tolist()]).double()
    weights, sums = fit_law(
        kaplan_law, torch.cat((rows, losses[:, None]), dim=1), starts=KAPLAN_STARTS
    )
    best = weights[sums.argmin()]
    assert best[[1, 3]].tolist() == pytest.approx([0.076, 0.095], abs=1e-3)


def test_tokens_for_a_loss_reach_it():
    tokens = REPLICATED.tokens_for(2.1, parameters=7e9)
    assert REPLICATED.loss(7e9, tokens) == pytest.approx(2.1)
    with pytest.raises(ValueError, match=r"loss 1\.9 is not above 2\.222"):
        REPLICATED.tokens_for(1.9, parameters=7e8)


def test_a_line_in_logarithms_and_a_parabola_have_their_textbook_solutions():
    xs, ys = [1.0, 2.0, 5.0, 11.0], [3.1, 4.4, 7.9, 12.0]
    slope, intercept = np.polyfit(np.log(xs), np.log(ys), 1)
    assert line(xs, ys) == pytest.approx((math.exp(intercept), slope))
    losses = [3.3, 3.0, 3.05, 3.4]
    square, straight, _ = np.polyfit(np.log(xs), losses, 2)
    assert valley(xs, losses) == pytest.approx(math.exp(-straight / 2 / square))


@pytest.mark.parametrize("losses", [[3.0, 2.9, 2.5], [3.0, 3.2, 3.0]])
def test_a_slope_and_a_hill_are_no_valley(losses):
    with pytest.raises(ValueError, match="have no valley between the sizes"):
        valley([1e6, 1e7, 1e8], losses)
