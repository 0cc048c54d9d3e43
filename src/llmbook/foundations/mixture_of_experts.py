"""A layer with many feed-forward networks, of which a router gives each token a few.

Page: foundations/mixture_of_experts. Papers: shazeer2017outrageously, eq. (1), (3) and (5);
lepikhin2021gshard, algorithm 1 (capacity); fedus2022switch, eq. (3) to (6) (capacity, balance);
zoph2022stmoe, eq. (5) (z-loss); zhou2022mixtureofexperts (experts choose); jiang2024mixtral, section 2.1;
dai2024deepseekmoe (shared experts); wang2024auxiliarylossfree, algorithm 1 (bias);
deepseekai2024deepseekv3, eq. (12) to (16) (sigmoid, bias, groups).
Left out: noise on the scores, and experts on several devices (training/expert_parallel).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmbook.config import Router


def affinities(scores: Float[Tensor, "tokens E"], *, router: Router) -> Float[Tensor, "tokens E"]:
    """What each expert is worth to each token, between 0 and 1: sigmoids, or shares of one."""
    return scores.sigmoid() if router == "sigmoid" else scores.softmax(-1)


def route(
    scores: Float[Tensor, "tokens E"],
    *,
    experts_per_token: int,
    router: Router = "top_softmax",
    bias: Float[Tensor, " E"] | None = None,
    scale: float = 1.0,
    num_groups: int = 1,
    groups_per_token: int = 1,
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """Weights and numbers of the k experts that each token is given.

    "softmax" leaves each its share of the softmax over all experts (fedus2022switch, eq. 2);
    "top_softmax" scales the k shares to a sum of one, which is a softmax over the k scores
    (jiang2024mixtral, section 2.1); "sigmoid" scales k sigmoids likewise
    (deepseekai2024deepseekv3, eq. 12 to 15). A `bias` takes part in the choice and not in the
    weights (eq. 16). With groups, experts are chosen in the `groups_per_token` whose two best sum
    highest (section 2.1.2). `scale` multiplies the weights.

    Raises:
        ValueError: if k is not between 1 and the number of experts.

    >>> weights, experts = route(torch.tensor([[0.0, 5.0, 1.0, 5.0]]), experts_per_token=2)
    >>> weights.tolist(), sorted(experts[0].tolist())
    ([[0.5, 0.5]], [1, 3])
    """
    if not 1 <= experts_per_token <= scores.shape[-1]:
        raise ValueError(
            f"experts_per_token {experts_per_token} is not between 1 and the number of experts, "
            f"{scores.shape[-1]}"
        )
    worth = affinities(scores, router=router)
    wanted = worth if bias is None else worth + bias
    if num_groups > 1:
        grouped = wanted.unflatten(-1, (num_groups, -1))  # tokens G E/G
        best = grouped.topk(2).values.sum(-1).topk(groups_per_token).indices
        closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
        wanted = grouped.masked_fill(closed[..., None], -torch.inf).flatten(-2)
    experts = wanted.topk(experts_per_token).indices
    weights = worth.gather(-1, experts)
    if router != "softmax":
        weights = weights / weights.sum(-1, keepdim=True)
    return scale * weights, experts


class RouterScores(nn.Linear):
    """One score for each expert. A bias, if there is one, is no part of them: `route` adds it.

    No gradient reaches the bias; `update_bias` moves it.
    """

    def __init__(self, hidden_size: int, num_experts: int, *, bias: bool) -> None:
        super().__init__(hidden_size, num_experts, bias=bias)
        if bias:
            self.bias.requires_grad_(False).zero_()

    def forward(self, hidden: Float[Tensor, "tokens D"]) -> Float[Tensor, "tokens E"]:
        """The matrix alone."""
        return nn.functional.linear(hidden, self.weight)


class MixtureOfExperts(nn.Module):
    """y = sum over the chosen experts e of weight_e(x) expert_e(x) (shazeer2017outrageously, eq. 1).

    The experts may be any networks from D to D. Each is run once, on the tokens that chose it. A
    `shared` network runs on all tokens beside them (dai2024deepseekmoe, section 3.2). What else is
    given goes to `route`.
    """

    def __init__(
        self,
        experts: Iterable[nn.Module],
        *,
        hidden_size: int,
        experts_per_token: int,
        shared: nn.Module | None = None,
        router_bias: bool = False,
        router: Router = "top_softmax",
        scale: float = 1.0,
        num_groups: int = 1,
        groups_per_token: int = 1,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.shared = shared
        self.router = RouterScores(hidden_size, len(self.experts), bias=router_bias)
        self.route = partial(
            route, experts_per_token=experts_per_token, router=router, scale=scale,
            num_groups=num_groups, groups_per_token=groups_per_token,
        )  # fmt: skip

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each token by itself."""
        tokens = hidden.flatten(0, 1)  # B T D -> B*T D
        weights, chosen = self.route(self.router(tokens), bias=self.router.bias)
        output = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            output.index_add_(0, token, weights[token, place, None] * expert(tokens[token]))
        return output.view_as(hidden)


@contextmanager
def recorded_scores(model: nn.Module) -> Iterator[list[Float[Tensor, "tokens E"]]]:
    """A list that every router in the model, first layer first, appends its scores to."""
    found: list[Tensor] = []
    routers = [module for module in model.modules() if isinstance(module, RouterScores)]
    hooks = [
        router.register_forward_hook(lambda _, __, scores: found.append(scores))
        for router in routers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def load(experts: Int[Tensor, "tokens k"], *, num_experts: int) -> Float[Tensor, " E"]:
    """Share of all choices that each expert received; the shares sum to one.

    >>> load(torch.tensor([[0, 1], [0, 2]]), num_experts=4).tolist()
    [0.5, 0.25, 0.25, 0.0]
    """
    return experts.flatten().bincount(minlength=num_experts) / experts.numel()


def effective_experts(shares: Float[Tensor, " E"]) -> float:
    """The exponential of the load's entropy: so many experts, evenly used, would be as mixed.

    >>> round(effective_experts(torch.tensor([0.5, 0.5, 0.0, 0.0])), 3)
    2.0
    """
    return math.exp(-torch.special.xlogy(shares, shares).sum().item())


def expert_capacity(
    num_tokens: int, *, num_experts: int, experts_per_token: int, capacity_factor: float
) -> int:
    """Places of an expert: ceil(factor tokens k / E) (fedus2022switch, eq. 3, with k = 1).

    >>> expert_capacity(6, num_experts=3, experts_per_token=1, capacity_factor=1.5)
    3
    """
    return math.ceil(capacity_factor * num_tokens * experts_per_token / num_experts)


def within_capacity(
    experts: Int[Tensor, "tokens k"], *, num_experts: int, capacity: int
) -> Bool[Tensor, "tokens k"]:
    """Which choices find a place: all tokens' first choices are served first, in their order.

    That is the order of lepikhin2021gshard, algorithm 1, which also tosses a coin for each second
    choice; a token whose expert is full passes by it on the residual stream. The order is that of
    the batch, so what is dropped depends on the neighbours.

    >>> within_capacity(torch.tensor([[0], [0], [1], [0]]), num_experts=2, capacity=2)[:, 0].tolist()
    [True, True, True, False]
    """
    in_order = nn.functional.one_hot(experts.T.flatten(), num_experts)  # k*tokens E
    place = (in_order.cumsum(0) * in_order).sum(-1)  # 1 for the first that chose the expert
    return (place <= capacity).view_as(experts.T).T


def expected_dropped_share(
    num_tokens: int, *, num_experts: int, experts_per_token: int, capacity: int
) -> float:
    """Share of choices that find no place where every expert is as likely: a binomial's tail.

    An expert is chosen by each of n tokens with probability k / E, whatever the others do, and
    E[max(X - capacity, 0)] of its choices are dropped. At a capacity equal to the mean m = n k / E
    that is about sqrt((1 - k / E) / (2 pi m)) of them.
    """
    p = experts_per_token / num_experts
    counts = torch.arange(num_tokens + 1, dtype=torch.float64)
    chances = torch.distributions.Binomial(num_tokens, torch.tensor(p, dtype=torch.float64))
    over = (counts - capacity).clamp(min=0)
    return float((chances.log_prob(counts).exp() * over).sum() / (num_tokens * p))


def load_balancing_loss(
    scores: Float[Tensor, "tokens E"], experts: Int[Tensor, "tokens k"]
) -> Float[Tensor, ""]:
    """E sum_e f_e p_e: f the share of choices, p the mean softmax (fedus2022switch, eq. 4 to 6).

    Without their factor alpha. 1 where f or p is uniform; E where one expert has everything. Only
    p has a gradient, E f_e: it lowers the scores of experts that are chosen often.
    """
    E = scores.shape[-1]
    chosen = load(experts, num_experts=E).to(scores)
    return E * (chosen * scores.softmax(-1).mean(0)).sum()


def router_z_loss(scores: Float[Tensor, "tokens E"]) -> Float[Tensor, ""]:
    """Mean over tokens of (log sum_e exp(score_e))²: keeps scores small (zoph2022stmoe, eq. 5)."""
    return scores.logsumexp(-1).square().mean()


@torch.no_grad()
def update_bias(
    bias: Float[Tensor, " E"], experts: Int[Tensor, "tokens k"], *, rate: float
) -> None:
    """Raise the bias of experts below the mean load by `rate`, lower the others', in place.

    wang2024auxiliarylossfree, algorithm 1; DeepSeek-V3's rate is 0.001
    (deepseekai2024deepseekv3, section 4.2).
    """
    bias += rate * (1 / len(bias) - load(experts, num_experts=len(bias))).sign()


def expert_choice(
    scores: Float[Tensor, "tokens E"], *, capacity: int
) -> tuple[Float[Tensor, "E capacity"], Int[Tensor, "E capacity"]]:
    """Weights and numbers of the tokens that each expert takes: balanced by construction.

    zhou2022mixtureofexperts, eq. (1) and (2). A token may be taken by many experts or none, and whether it
    is depends on tokens after it, so a decoder that generates cannot route like this.
    """
    best = scores.softmax(-1).topk(capacity, dim=0)  # capacity E
    return best.values.T, best.indices.T
