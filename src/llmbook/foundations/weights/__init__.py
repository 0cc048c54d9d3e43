"""How the book's own models were made: their recipes, and the training that gives the same bytes.

Page: foundations/language_modelling. `python -m llmbook.foundations.weights` (or
`nox -s train_models`) trains them; the files beside this one are what it wrote, and
`language_modelling.load` reads them.
Left out: a search for the best recipe.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.language_modelling import (
    adamw,
    batches,
    fit,
    next_token_loss,
    split_documents,
    warmup_cosine,
)
from llmbook.foundations.tokenization import BytePairTokenizer, train_byte_pair

FOLDER = Path(__file__).parent
NUM_FIRST_STEPS = 20  # a test repeats them
LLAMA = ModelConfig(  # the choices of touvron2023llamaa; the sizes come with each recipe
    vocab_size=2048,
    hidden_size=192,
    num_layers=7,
    num_heads=4,
    intermediate_size=512,
    max_seq_len=256,
    positions="rotary",
    norm="rms_norm",
    activation="silu",
    gated=True,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the weights, beside the corpus and the machine."""

    config: ModelConfig
    num_steps: int
    peak_rate: float
    num_warmup_steps: int = 200
    batch_size: int = 8
    std: float = 0.04
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW: 0.99, for a step sees few tokens
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens learned from, repetitions counted."""
        return self.num_steps * self.batch_size * self.config.max_seq_len


RECIPES = {
    "small": Recipe(config=LLAMA.but(name="small"), num_steps=5000, peak_rate=2e-3),
    "draft": Recipe(
        config=LLAMA.but(
            name="draft",
            hidden_size=96,
            embedding_size=96,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            head_dim=48,
            intermediate_size=208,
        ),
        num_steps=6000,
        peak_rate=6e-3,
        std=0.08,
    ),
}


def made_tokenizer() -> BytePairTokenizer:
    """The tokenizer of both models, learned from the training documents."""
    texts = [document.text for document in split_documents()[0]]
    return train_byte_pair(texts, vocab_size=LLAMA.vocab_size, special_tokens=("<|endoftext|>",))


def bf16_loss(model: nn.Module, tokens: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The next-token loss with matrices multiplied in bf16, weights and sums in fp32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return next_token_loss(model, tokens)


def trained(
    recipe: Recipe,
    tokens: Int[Tensor, " n"],
    *,
    num_steps: int | None = None,
    checkpoint: Path | None = None,
    report: Callable[[int, float], object] = lambda step, loss: None,
) -> tuple[Decoder, list[float]]:
    """The decoder after `num_steps` of the recipe (all unless given), and the losses.

    With a checkpoint the state is kept there every 100 steps, and a run that finds one goes on from
    it to the same bytes: weights, moments and losses are stored, the order of the data is replayed.
    Runs on one thread: the order of a sum, and so its last bit, depends on their number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = Run(recipe, tokens)
    if checkpoint is not None and checkpoint.exists():
        run.restore(torch.load(checkpoint))
    num_steps = recipe.num_steps if num_steps is None else num_steps
    try:
        while (done := len(run.losses)) < num_steps:
            run.go_on(min(num_steps - done, 100 - done % 100))
            report(len(run.losses), sum(run.losses[done:]) / (len(run.losses) - done))
            if checkpoint is not None:
                torch.save(run.state(), checkpoint.with_suffix(".new"))
                os.replace(checkpoint.with_suffix(".new"), checkpoint)  # never half a file
    finally:
        torch.set_num_threads(threads)
    return run.model, run.losses


class Run:
    """A training that can stop and go on: what it holds beside the recipe and the text."""

    def __init__(self, recipe: Recipe, tokens: Int[Tensor, " n"]) -> None:
        generator = torch.Generator().manual_seed(recipe.seed)
        decoder = Decoder(recipe.config)
        self.model = initialise(decoder, generator=generator, std=recipe.std)
        self.optimizer = adamw(self.model, betas=recipe.betas)
        self.data = batches(
            tokens,
            batch_size=recipe.batch_size,
            seq_len=recipe.config.max_seq_len,
            generator=generator,
        )
        self.rates = warmup_cosine(
            recipe.peak_rate, num_steps=recipe.num_steps, num_warmup_steps=recipe.num_warmup_steps
        )
        self.losses: list[float] = []

    def go_on(self, num_steps: int) -> None:
        """The next steps."""
        done = len(self.losses)
        schedule = self.rates[done : done + num_steps]
        self.losses += fit(
            self.model, self.data, optimizer=self.optimizer, schedule=schedule, loss=bf16_loss
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where the checkpoint was written; called once, on a fresh run."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])
        for _ in islice(self.data, len(self.losses)):  # the order of the data, replayed
            pass


def serialized(model: Decoder, dtype: torch.dtype) -> bytes:
    """The weights as a safetensors file; the same weights give the same bytes."""
    return safetensors.torch.save(
        {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
    )


def sha256(data: bytes) -> str:
    """The hash that the cards hold."""
    return hashlib.sha256(data).hexdigest()


def processor() -> str:
    """The kind of processor, on which the last bit of a product depends."""
    cpuinfo = Path("/proc/cpuinfo")
    fields = dict.fromkeys(("model name", "cpu family", "model"), "")
    if cpuinfo.exists():
        for line in reversed(cpuinfo.read_text().splitlines()):
            key, _, value = line.partition(":")
            if key.strip() in fields:
                fields[key.strip()] = value.strip()
    name = fields["model name"] or platform.processor() or platform.machine()
    return (
        f"{name}, family {fields['cpu family']}, model {fields['model']}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
