"""RWKV-4: a mean over all earlier tokens whose weights decay, kept in five vectors a layer.

Page: foundations/recurrence. Paper: peng2023rwkv, eq. (11) to (18) and appendix D; the names of the
weights are those of its code. Left out: initialisation, and the halving of activations every few
layers with which fp16 inference avoids overflow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmbook.foundations.attention import causal_mask


class State(NamedTuple):
    """What a layer keeps of the text: 5 D numbers (peng2023rwkv, appendix D)."""

    time_input: Float[Tensor, "B D"]  # last input of the time mixing
    channel_input: Float[Tensor, "B D"]  # last input of the channel mixing
    numerator: Float[Tensor, "B D"]
    denominator: Float[Tensor, "B D"]
    exponent: Float[Tensor, "B D"]  # by which both are scaled: a = e^p a'


def empty_state(like: Float[Tensor, "B T D"]) -> State:
    """The state before the first token, in float32 at least."""
    zero = torch.zeros_like(like[:, 0], dtype=torch.promote_types(like.dtype, torch.float32))
    return State(zero, zero, zero, zero, torch.full_like(zero, -math.inf))


def wkv_parallel(
    decay: Float[Tensor, " D"],
    bonus: Float[Tensor, " D"],
    key: Float[Tensor, "B T D"],
    value: Float[Tensor, "B T D"],
) -> Float[Tensor, "B T D"]:
    """A mean of the values, softmax weights in each channel by itself (peng2023rwkv, eq. 16).

    Token s weighs e^(k_s - (t - 1 - s) w) for query t, the own token e^(k_t + u).
    """
    T = key.shape[1]
    place = torch.arange(T, device=key.device)
    age = (place[:, None] - 1 - place)[..., None]  # T T 1
    logits = torch.where(age < 0, key[:, None] + bonus, key[:, None] - age * decay)  # B T T D
    past = causal_mask(T, T).to(key.device)[..., None]
    weights = logits.masked_fill(~past, -math.inf).softmax(2)
    return torch.einsum("btsd,bsd->btd", weights, value)


def wkv_recurrent(
    decay: Float[Tensor, " D"],
    bonus: Float[Tensor, " D"],
    key: Float[Tensor, "B T D"],
    value: Float[Tensor, "B T D"],
    state: State,
) -> tuple[Float[Tensor, "B T D"], State]:
    """The same mean from a running numerator and denominator (peng2023rwkv, eq. 23 to 28).

    Both are kept divided by e^p, p the largest exponent so far, so that none overflows.
    """
    a, b, p = state.numerator, state.denominator, state.exponent
    outputs = []
    for k, v in zip(key.unbind(1), value.unbind(1), strict=True):
        top = torch.maximum(p, bonus + k)
        past, own = (p - top).exp(), (bonus + k - top).exp()
        outputs.append((past * a + own * v) / (past * b + own))
        top = torch.maximum(p - decay, k)
        past, own = (p - decay - top).exp(), (k - top).exp()
        a, b, p = past * a + own * v, past * b + own, top
    return torch.stack(outputs, dim=1).to(value), state._replace(
        numerator=a, denominator=b, exponent=p
    )


def shifted(x: Float[Tensor, "B T D"], last: Float[Tensor, "B D"]) -> Float[Tensor, "B T D"]:
    """Each token's predecessor, the first one's from the state: the token shift."""
    return torch.cat((last[:, None].to(x), x[:, :-1]), dim=1)


class TimeMixing(nn.Module):
    """Where tokens meet, in place of attention (peng2023rwkv, eq. 11 to 13, 16 and 17)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        D = hidden_size
        self.time_decay, self.time_first = (nn.Parameter(torch.zeros(D)) for _ in range(2))
        self.mix_key, self.mix_value, self.mix_receptance = (
            nn.Parameter(torch.full((D,), 0.5)) for _ in range(3)
        )
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(D, D, bias=False) for _ in range(4)
        )

    def forward(
        self, x: Float[Tensor, "B T D"], state: State
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Mix with the token before, take the mean over all before, let the receptance pass it."""
        before = shifted(x, state.time_input)
        key = self.key(before.lerp(x, self.mix_key))
        value = self.value(before.lerp(x, self.mix_value))
        receptance = self.receptance(before.lerp(x, self.mix_receptance)).sigmoid()
        decay = self.time_decay.exp()  # w > 0, so that e^-w < 1
        mean, state = wkv_recurrent(decay, self.time_first, key, value, state)
        return self.output(receptance * mean), state._replace(time_input=x[:, -1])


class ChannelMixing(nn.Module):
    """In place of the feed-forward layer: W relu(k)², gated (peng2023rwkv, eq. 14, 15 and 18)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        D = hidden_size
        self.mix_key, self.mix_receptance = (nn.Parameter(torch.full((D,), 0.5)) for _ in range(2))
        self.key, self.value = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)
        self.receptance = nn.Linear(D, D, bias=False)

    def forward(
        self, x: Float[Tensor, "B T D"], state: State
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Each token with its predecessor."""
        before = shifted(x, state.channel_input)
        inner = self.key(before.lerp(x, self.mix_key)).relu().square()  # B T 4D
        receptance = self.receptance(before.lerp(x, self.mix_receptance)).sigmoid()
        return receptance * self.value(inner), state._replace(channel_input=x[:, -1])


class Block(nn.Module):
    """Both mixings, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.time_norm, self.channel_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.time_mixing, self.channel_mixing = TimeMixing(hidden_size), ChannelMixing(hidden_size)

    def forward(
        self, hidden: Float[Tensor, "B T D"], state: State
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """One step down the residual stream."""
        mixed, state = self.time_mixing(self.time_norm(hidden), state)
        hidden = hidden + mixed
        mixed, state = self.channel_mixing(self.channel_norm(hidden), state)
        return hidden + mixed, state


class RWKV(nn.Module):
    """Tokens in, logits and the new state out.

    >>> model = RWKV(vocab_size=5, hidden_size=8, num_layers=2)
    >>> logits, states = model(torch.zeros(1, 3, dtype=torch.long))
    >>> logits.shape, sum(x.numel() for state in states for x in state)
    (torch.Size([1, 3, 5]), 80)
    """

    def __init__(self, *, vocab_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.embedding_norm = nn.LayerNorm(hidden_size)
        self.layers = nn.ModuleList(Block(hidden_size) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(
        self, tokens: Int[Tensor, "B T"], states: list[State] | None = None
    ) -> tuple[Float[Tensor, "B T V"], list[State]]:
        """Read T tokens after those that the states have seen."""
        hidden = self.embedding_norm(self.embedding(tokens))
        states = [empty_state(hidden) for _ in self.layers] if states is None else states
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            hidden, state = layer(hidden, state)
            after.append(state)
        return self.head(self.final_norm(hidden)), after
