"""Chains of thought on a task where every step can be checked: the parity of a row of bits.

Page: foundations/reasoning. Papers: nye2021show and wei2022chainofthought (written steps),
kim2025transformers (parity with and without them), zelikman2022star (training on one's own chains).
Votes and verifiers stand in `votes`; the stored runs are made by
`python -m llmbook.foundations.reasoning_runs`.
Left out: prompts for large models (foundations/prompting_and_retrieval), and learning from rewards
beyond keeping what was right (training/alignment).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.language_modelling import (
    IGNORED,
    adamw,
    fit,
    generate,
    greedy,
    next_token_loss,
    sampled,
    warmup_cosine,
)

EQUALS, FILLER = 2, 3  # the tokens beside the bits 0 and 1

# the task


def split_bit_strings(
    num_bits: int, *, num_held_out: int
) -> tuple[Int[Tensor, "train n"], Int[Tensor, "held_out n"]]:
    """All rows of bits in one fixed random order: those to train on, and the last, held out.

    >>> [len(part) for part in split_bit_strings(4, num_held_out=6)]
    [10, 6]
    """
    every = (torch.arange(2**num_bits)[:, None] >> torch.arange(num_bits)) & 1
    shuffled = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    return shuffled[:-num_held_out], shuffled[-num_held_out:]


def question(bits: Int[Tensor, "B n"]) -> Int[Tensor, "B n+1"]:
    """The bits and an equals sign: what is read and not learned."""
    return nn.functional.pad(bits, (0, 1), value=EQUALS)


def chain(bits: Int[Tensor, "B n"], *, every: int = 1) -> Int[Tensor, "B steps"]:
    """The parity of the first `every` bits, of twice as many, ... of all: the last is the answer.

    Raises:
        ValueError: if `every` does not divide the number of bits.

    >>> chain(torch.tensor([[1, 0, 1, 1]])), chain(torch.tensor([[1, 0, 1, 1]]), every=4)
    (tensor([[1, 1, 0, 1]]), tensor([[1]]))
    """
    if bits.shape[1] % every:
        raise ValueError(f"every {every} does not divide the number of bits {bits.shape[1]}")
    return (bits.cumsum(1) % 2)[:, every - 1 :: every]


def written(bits: Int[Tensor, "B n"], *, every: int = 1) -> tuple[Tensor, Tensor]:
    """Question and chain as tokens, and labels that count the chain alone."""
    tokens = torch.cat([question(bits), chain(bits, every=every)], dim=1)
    labels = tokens.clone()
    labels[:, : bits.shape[1] + 1] = IGNORED
    return tokens, labels


def filled(bits: Int[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
    """As long as the full chain, but a meaningless token stands for each step before the answer."""
    tokens, labels = written(bits)
    tokens[:, bits.shape[1] + 1 : -1] = FILLER
    labels[:, :-1] = IGNORED
    return tokens, labels


def told(bits: Int[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
    """The answer alone is written, but every bit's place is taught the parity up to there."""
    tokens, labels = written(bits, every=bits.shape[1])
    labels[:, 1:-1] = chain(bits)
    return tokens, labels


def parity_decoder(num_bits: int, *, seed: int) -> Decoder:
    """One block of width 32 with four heads: the smallest that learns chains of 16 bits safely."""
    config = ModelConfig(
        vocab_size=4, hidden_size=32, num_layers=1, num_heads=4, max_seq_len=2 * num_bits + 1,
        norm="rms_norm", tie_embeddings=False,
    )  # fmt: skip
    return initialise(Decoder(config), generator=torch.Generator().manual_seed(seed), std=0.1)


def train_on(
    model: Decoder,
    tokens: Int[Tensor, "n T"],
    labels: Int[Tensor, "n T"],
    *,
    num_steps: int,
    seed: int,
    peak: float = 0.01,
    batch_size: int = 64,
    stop: Callable[[Sequence[float]], bool] = lambda losses: False,
) -> list[float]:
    """`fit` on rows drawn with replacement; return the losses.

    `stop` is asked before each step with the losses so far: a half-trained model ends at a loss.
    """
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while not stop(losses):
            rows = torch.randint(len(tokens), (batch_size,), generator=generator)
            yield tokens[rows], labels[rows]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        value = next_token_loss(model, batch[0], labels=batch[1])
        losses.append(value.item())
        return value

    return fit(
        model,
        batches(),
        optimizer=adamw(model, betas=(0.9, 0.99), weight_decay=0.01),
        schedule=warmup_cosine(peak, num_steps=num_steps, num_warmup_steps=max(1, num_steps // 20)),
        loss=loss,
    )


def answers(
    model: Decoder,
    bits: Int[Tensor, "B n"],
    *,
    num_tokens: int,
    choose: Callable[[Float[Tensor, "B V"]], Int[Tensor, " B"]] = greedy,
) -> Int[Tensor, "B num_tokens"]:
    """What the model writes after the question; its last token is the answer."""
    return generate(model, question(bits), num_tokens=num_tokens, choose=choose)


def accuracy(written: Int[Tensor, "B m"], bits: Int[Tensor, "B n"]) -> float:
    """Share of the rows whose last token is the parity."""
    return (written[:, -1] == bits.sum(1) % 2).double().mean().item()


def parity_signal(num_bits: int, *, seed: int) -> float:
    """Length of the part of the first gradient that knows the answer, over all strings at once.

    The gradient of the loss on the answer alone, before any step, less the same with every answer
    flipped, halved: what both have in common says nothing about parity. In double precision, since
    it is small.
    """
    bits = (torch.arange(2**num_bits)[:, None] >> torch.arange(num_bits)) & 1
    model = parity_decoder(num_bits, seed=seed).double()
    tokens, labels = written(bits, every=num_bits)
    flipped = torch.where(labels == IGNORED, IGNORED, 1 - labels)
    true, false = (
        torch.autograd.grad(next_token_loss(model, tokens, labels=wanted), [*model.parameters()])
        for wanted in (labels, flipped)
    )
    return math.hypot(*(((a - b) / 2).norm().item() for a, b in zip(true, false, strict=True)))


# training on one's own chains


def self_taught_round(
    model: Decoder,
    bits: Int[Tensor, "n bits"],
    *,
    keep: Callable[[Int[Tensor, "n m"], Int[Tensor, "n bits"]], Bool[Tensor, " n"]],
    num_steps: int,
    seed: int,
) -> int:
    """Sample a chain for each question, train on those to keep, in place; return how many were kept.

    One round of zelikman2022star without its hints. `keep` is the reward: right answers (an outcome)
    or right steps (the process).
    """
    generator = torch.Generator().manual_seed(seed)
    choose = partial(sampled, temperature=1.0, generator=generator)
    chains = answers(model, bits, num_tokens=bits.shape[1], choose=choose)
    kept = keep(chains, bits)
    tokens = torch.cat([question(bits), chains], dim=1)[kept]
    labels = tokens.clone()
    labels[:, : bits.shape[1] + 1] = IGNORED
    train_on(model, tokens, labels, num_steps=num_steps, seed=seed, peak=0.003)
    return len(tokens)


def right_answers(chains: Int[Tensor, "n m"], bits: Int[Tensor, "n bits"]) -> Bool[Tensor, " n"]:
    """An outcome reward: the last token alone is looked at."""
    return chains[:, -1] == bits.sum(1) % 2


def right_steps(chains: Int[Tensor, "n m"], bits: Int[Tensor, "n bits"]) -> Bool[Tensor, " n"]:
    """A process reward: every step is looked at."""
    return (chains == chain(bits)).all(1)


@cache
def stored_runs() -> dict[str, Any]:
    """The file of runs with its command, date, processor and CPU seconds."""
    text = (files("llmbook.foundations") / "reasoning_runs.json").read_text("utf8")
    runs: dict[str, Any] = json.loads(text)
    return runs
