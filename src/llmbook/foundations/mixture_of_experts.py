"""A layer with many feed-forward networks, of which a router gives each token a few.

Page: foundations/mixture_of_experts. Papers: shazeer2017outrageously, eq. (1), (3) and (5);
jiang2024mixtral, section 2.1.
Left out: capacity, the loss that balances the load, shared experts, noise.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def route(
    scores: Float[Tensor, "tokens E"], *, experts_per_token: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """Weights and numbers of the k experts that each token is given: softmax over the top k scores.

    The weights are positive and sum to one (jiang2024mixtral, section 2.1); that a softmax over all
    experts came first would change nothing once the k are scaled to a sum of one.

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
    best, experts = scores.topk(experts_per_token)
    return best.softmax(-1), experts


class MixtureOfExperts(nn.Module):
    """y = sum over the chosen experts e of weight_e(x) expert_e(x) (shazeer2017outrageously, eq. 1).

    The experts may be any networks from D to D. Each is run once, on the tokens that chose it.
    """

    def __init__(
        self, experts: Iterable[nn.Module], *, hidden_size: int, experts_per_token: int
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = nn.Linear(hidden_size, len(self.experts), bias=False)
        self.experts_per_token = experts_per_token

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each token by itself."""
        tokens = hidden.flatten(0, 1)  # B T D -> B*T D
        weights, chosen = route(self.router(tokens), experts_per_token=self.experts_per_token)
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            output.index_add_(0, token, weights[token, place, None] * expert(tokens[token]))
        return output.view_as(hidden)
