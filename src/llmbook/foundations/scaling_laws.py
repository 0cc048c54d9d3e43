"""Loss as a function of size and tokens: its laws, their fit to runs, and the best split of a budget.

Page: foundations/scaling_laws. Papers: kaplan2020scaling, eq. (1.1), (1.2), (1.5);
hoffmann2022training, eq. (2) to (4), approaches 2 and 3; besiroglu2024chinchilla (the fit again).
Their N is our P, `parameters`; their D is `num_tokens`; what they call E, A and B are `floor`,
`size_factor` and `token_factor`. Losses are in nats a token, compute in FLOPs at 6 P a token.
Left out: batch size and steps as variables of their own (kaplan2020scaling, section 5).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Law = Callable[[Tensor, Tensor, Tensor], Tensor]  # weights, ln P, ln tokens -> ln loss
FLOPS_PER_PARAMETER = 6  # of training, a token: foundations/flops


@dataclass(frozen=True)
class Chinchilla:
    """floor + size_factor / P^size_exponent + token_factor / tokens^token_exponent.

    hoffmann2022training, eq. (2): what no model can know, what a model of this size cannot hold,
    what it cannot learn from so little text.
    """

    floor: float
    size_factor: float
    size_exponent: float
    token_factor: float
    token_exponent: float

    def loss(self, parameters: float, num_tokens: float) -> float:
        """Nats a token.

        >>> round(PUBLISHED.loss(70e9, 1.4e12), 3)
        1.937
        """
        size_term: float = self.size_factor / parameters**self.size_exponent
        token_term: float = self.token_factor / num_tokens**self.token_exponent
        return self.floor + size_term + token_term

    @property
    def split_exponent(self) -> float:
        """The a of P = G (C / 6)^a: hoffmann2022training, eq. (4)."""
        return self.token_exponent / (self.size_exponent + self.token_exponent)

    def optimum(self, compute: float) -> tuple[float, float]:
        """Parameters and tokens of the least loss for so many FLOPs: hoffmann2022training, eq. (4).

        >>> [f"{count:.3g}" for count in UNROUNDED.optimum(5.76e23)]
        ['4.03e+10', '2.38e+12']
        """
        ratio = self.size_exponent * self.size_factor / (self.token_exponent * self.token_factor)
        scale = ratio ** (1 / (self.size_exponent + self.token_exponent))  # G
        parameters = scale * (compute / FLOPS_PER_PARAMETER) ** self.split_exponent
        return parameters, compute / FLOPS_PER_PARAMETER / parameters

    def tokens_for(self, loss: float, *, parameters: float) -> float:
        """Tokens after which a model of this size reaches the loss.

        Raises:
            ValueError: if no number of tokens suffices.
        """
        rest = loss - self.loss(parameters, math.inf)
        if rest <= 0:
            raise ValueError(
                f"loss {loss} is not above {self.loss(parameters, math.inf):.3f}, "
                f"the least that {parameters:.3g} parameters reach"
            )
        return float((self.token_factor / rest) ** (1 / self.token_exponent))


PUBLISHED = Chinchilla(1.69, 406.4, 0.34, 410.7, 0.28)  # hoffmann2022training, appendix D.2
UNROUNDED = Chinchilla(1.6934, 406.4, 0.3392, 410.7, 0.2849)  # as besiroglu2024chinchilla has it
REPLICATED = Chinchilla(1.8172, 482.01, 0.3478, 2085.43, 0.3658)  # besiroglu2024chinchilla


def kaplan_loss(
    parameters: float,
    num_tokens: float = math.inf,
    *,
    size_scale: float = 8.8e13,
    size_exponent: float = 0.076,
    token_scale: float = 5.4e13,
    token_exponent: float = 0.095,
) -> float:
    """[(P_c / P)^(a_P / a_n) + n_c / n]^a_n, P without tables: kaplan2020scaling, eq. (1.5).

    With endless text it is (P_c / P)^a_P, eq. (1.1), and with an endless model (n_c / n)^a_n,
    eq. (1.2); the defaults are the constants of these two. Table 2 has those of the joint fit.

    >>> round(kaplan_loss(1e9), 2)
    2.38
    """
    size = (size_scale / parameters) ** (size_exponent / token_exponent)
    return float((size + token_scale / num_tokens) ** token_exponent)


def chinchilla_law(
    weights: Float[Tensor, " w"],
    log_parameters: Float[Tensor, " n"],
    log_tokens: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The logarithm of `Chinchilla.loss`, with weights ln E, ln A, alpha, ln B, beta."""
    floor, size, alpha, token, beta = weights
    terms = (floor + 0 * log_tokens, size - alpha * log_parameters, token - beta * log_tokens)
    return torch.stack(terms).logsumexp(0)


def kaplan_law(
    weights: Float[Tensor, " w"],
    log_parameters: Float[Tensor, " n"],
    log_tokens: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The logarithm of `kaplan_loss`, with weights ln P_c, a_P, ln n_c, a_n."""
    size_scale, size_exponent, token_scale, token_exponent = weights
    size = (size_scale - log_parameters) * size_exponent / token_exponent
    together: Tensor = torch.stack((size, token_scale - log_tokens)).logsumexp(0)
    return together.mul(token_exponent)


CHINCHILLA_STARTS = torch.cartesian_prod(
    torch.tensor([-1.0, 1.0]), *[torch.tensor([0.0, 10.0]), torch.tensor([0.5])] * 2
).double()  # ln E, ln A, alpha, ln B, beta: eight of the grid of hoffmann2022training, D.2
KAPLAN_STARTS = torch.cartesian_prod(
    *[torch.tensor([15.0, 30.0]), torch.tensor([0.05, 0.2])] * 2
).double()


def fit_law(
    law: Law,
    runs: Float[Tensor, "n 3"],
    *,
    starts: Float[Tensor, "s w"],
    samples: Float[Tensor, "s n"] | None = None,
    delta: float = 1e-3,
    num_steps: int = 400,
) -> tuple[Float[Tensor, "s w"], Float[Tensor, " s"]]:
    """Weights of the least sum of Huber(ln predicted - ln loss), from each start, and that sum.

    hoffmann2022training, eq. (3) and D.2; `runs` are rows of parameters, tokens, loss. Where they
    ran L-BFGS from one start after the other, all starts take the steps of Levenberg and Marquardt
    together: a residual beyond `delta` counts with its size, not its square, so its weight in the
    least-squares step is delta / size. `samples` says how often each start counts each run.
    """
    log_parameters, log_tokens, log_losses = runs.double().log().unbind(1)
    counts = torch.ones(len(starts), len(runs)) if samples is None else samples

    def residuals(weights: Tensor) -> Tensor:
        predicted: Tensor = law(weights, log_parameters, log_tokens)
        return predicted - log_losses

    def objective(weights: Tensor) -> Tensor:
        size = torch.vmap(residuals)(weights).abs()
        huber = torch.where(size < delta, size**2 / 2, delta * (size - delta / 2))
        sums: Tensor = (counts * huber).sum(-1)
        return sums.nan_to_num(torch.inf)

    weights, damping = starts.clone(), torch.full((len(starts),), 1e-2).double()
    best = objective(weights)
    for _ in range(num_steps):
        slopes = torch.vmap(torch.func.jacfwd(residuals))(weights)  # s n w
        missed = torch.vmap(residuals)(weights)
        pull = counts * (delta / missed.abs()).clamp(max=1)
        square = torch.einsum("sn,snw,snv->swv", pull, slopes, slopes)
        square += torch.diag_embed(damping[:, None] * square.diagonal(dim1=1, dim2=2) + 1e-12)
        tried = weights - torch.linalg.solve(
            square, torch.einsum("sn,snw,sn->sw", pull, slopes, missed)
        )
        value = objective(tried)
        better = value < best
        weights = torch.where(better[:, None], tried, weights)
        best = torch.where(better, value, best)
        damping = torch.where(better, damping / 3, damping * 4).clamp(1e-9, 1e9)
        if damping.min() == 1e9:  # no step of any length helps any start
            break
    return weights, best


def as_chinchilla(weights: Float[Tensor, " w"]) -> Chinchilla:
    """The law whose logarithms a fit of `chinchilla_law` found."""
    floor, size, alpha, token, beta = weights.tolist()
    return Chinchilla(math.exp(floor), math.exp(size), alpha, math.exp(token), beta)


def fit_chinchilla(runs: Float[Tensor, "n 3"]) -> Chinchilla:
    """The best fit of all starts."""
    weights, sums = fit_law(chinchilla_law, runs, starts=CHINCHILLA_STARTS)
    return as_chinchilla(weights[sums.argmin()])


def bootstrap(
    runs: Float[Tensor, "n 3"], *, num_samples: int, generator: torch.Generator
) -> list[Chinchilla]:
    """Fits to the runs drawn again with replacement, each started from the fit to all."""
    weights, sums = fit_law(chinchilla_law, runs, starts=CHINCHILLA_STARTS)
    drawn = torch.randint(len(runs), (num_samples, len(runs)), generator=generator)
    samples = torch.nn.functional.one_hot(drawn, len(runs)).sum(1).double()
    starts = weights[sums.argmin()].expand(num_samples, -1)
    return [
        as_chinchilla(w) for w in fit_law(chinchilla_law, runs, starts=starts, samples=samples)[0]
    ]


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Factor and exponent of y = factor x^exponent, by least squares of the logarithms.

    >>> [round(number, 6) for number in line([1.0, 10.0, 100.0], [3.0, 30.0, 300.0])]
    [3.0, 1.0]
    """
    x, y = (torch.tensor(values, dtype=torch.double).log() for values in (xs, ys))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return (y.mean() - slope * x.mean()).exp().item(), slope.item()


def valley(parameters: Sequence[float], losses: Sequence[float]) -> float:
    """The size at the bottom of a parabola through loss over ln P: hoffmann2022training, approach 2.

    Raises:
        ValueError: if the parabola has no bottom inside the sizes.

    >>> round(valley([1e6, 1e7, 1e8], [3.2, 3.0, 3.2]))
    10000000
    """
    x = torch.tensor(parameters, dtype=torch.double).log()
    powers = torch.stack((x**2, x, torch.ones_like(x)), dim=1)
    y = torch.tensor(losses, dtype=torch.double)[:, None]
    square, straight, _ = torch.linalg.lstsq(powers, y).solution[:, 0]
    bottom = (-straight / (2 * square)).item()
    if square <= 0 or not x.min() <= bottom <= x.max():
        raise ValueError(
            f"losses {list(losses)} have no valley between the sizes {list(parameters)}"
        )
    return math.exp(bottom)


@cache
def stored() -> dict[str, Any]:
    """What `python -m llmbook.foundations.scaling_runs` measured: its header, and its "runs"."""
    text = (files("llmbook.foundations") / "scaling_runs.json").read_text(encoding="utf8")
    measured: dict[str, Any] = json.loads(text)
    return measured
