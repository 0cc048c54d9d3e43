"""The tiny models of the page on emergence: `python -m llmbook.foundations.emergence_runs`.

Page: foundations/emergence. A run that was stopped goes on behind the last finished model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from llmbook.foundations.decoder import Decoder
from llmbook.foundations.emergence import (
    SYLLABLES,
    Scores,
    additions,
    answer_loss,
    phone_book,
    scores,
    tiny_config,
)
from llmbook.foundations.language_modelling import adamw, fit, warmup_cosine
from llmbook.foundations.weights import processor

FILE = Path(__file__).parent / "emergence_runs.json"
ANSWER_LEN = 5
SEEDS = range(4)  # the page shows the first three, the tests use the last as well


@dataclass(frozen=True, kw_only=True)
class Task:
    """How one task is trained: the same for every width."""

    widths: tuple[int, ...]
    vocab_size: int
    num_layers: int
    seq_len: int
    batch_size: int
    num_steps: int
    steps_between_scores: int
    weight_decay: float
    peak: float = 0.01  # learning rate


TASKS = {
    "phone book": Task(
        vocab_size=10 + 2 * SYLLABLES, num_layers=1, seq_len=ANSWER_LEN + 2,
        batch_size=256, num_steps=800, steps_between_scores=200,
        weight_decay=0.0,
        widths=(8, 16, 24, 32, 40, 48, 64),
    ),
    "addition": Task(
        vocab_size=12, num_layers=2, seq_len=3 * ANSWER_LEN,
        batch_size=64, num_steps=1000, steps_between_scores=100,
        weight_decay=0.1,
        widths=(32, 64),
    ),
}  # fmt: skip


def questions(task: str) -> Int[Tensor, "questions T"]:
    """What the models of a task are asked: the whole book, or 2,000 sums."""
    luck = torch.Generator().manual_seed(99)
    if task == "phone book":
        return phone_book(SYLLABLES**2, num_digits=ANSWER_LEN, generator=luck)
    return additions(2000, num_digits=ANSWER_LEN - 1, generator=luck)


def training_rows(task: str, generator: torch.Generator) -> Iterator[Int[Tensor, "B T"]]:
    """Batches without end: the book shuffled for each epoch, or new sums for each batch."""
    size = TASKS[task].batch_size
    while True:
        if task == "phone book":
            yield from questions(task)[torch.randperm(SYLLABLES**2, generator=generator)].split(
                size
            )
        else:
            yield additions(size, num_digits=ANSWER_LEN - 1, generator=generator)


def trained(
    task: str, *, hidden_size: int, seed: int, num_scores: int | None = None
) -> tuple[Decoder, list[Scores]]:
    """A model and its scores along the way; `num_scores` stops early, for a test."""
    recipe = TASKS[task]
    torch.manual_seed(seed)
    model = Decoder(
        tiny_config(
            recipe.vocab_size, hidden_size=hidden_size, num_layers=recipe.num_layers,
            seq_len=recipe.seq_len,
        )
    )  # fmt: skip
    rows = training_rows(task, torch.Generator().manual_seed(seed))
    rates = iter(
        warmup_cosine(
            recipe.peak, num_steps=recipe.num_steps, num_warmup_steps=recipe.num_steps // 10
        )
    )
    optimizer = adamw(model, weight_decay=recipe.weight_decay)
    loss = partial(answer_loss, answer_len=ANSWER_LEN)
    found = []
    for _ in range(num_scores or recipe.num_steps // recipe.steps_between_scores):
        some = list(islice(rates, recipe.steps_between_scores))
        fit(model, rows, optimizer=optimizer, schedule=some, loss=loss)
        found.append(scores(model, questions(task), answer_len=ANSWER_LEN))
    return model, found


def rounded(found: Scores) -> dict[str, Any]:
    """Scores as plain data with as many digits as a page could print."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        return [short(part) for part in value]

    return {name: short(value) for name, value in asdict(found).items()}


def main() -> None:
    """Train what is missing, and write the file after each model."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    data: dict[str, Any] = json.loads(FILE.read_text("utf8")) if FILE.exists() else {
        "command": "python -m llmbook.foundations.emergence_runs",
        "date": date.today().isoformat(), "processor": processor(), "torch": torch.__version__,
        "cpu_seconds": 0.0, "runs": [],
    }  # fmt: skip
    done = {(run["task"], run["hidden_size"], run["seed"]) for run in data["runs"]}
    for seed in SEEDS:
        for task, recipe in TASKS.items():
            for hidden_size in recipe.widths:
                if (task, hidden_size, seed) in done:
                    continue
                start = time.process_time()
                model, found = trained(task, hidden_size=hidden_size, seed=seed)
                every = recipe.steps_between_scores
                data["runs"].append({
                    "task": task, "hidden_size": hidden_size, "seed": seed,
                    "parameters": sum(weight.numel() for weight in model.parameters()),
                    "steps": [every * (i + 1) for i in range(len(found))],
                    "scores": [rounded(each) for each in found],
                })  # fmt: skip
                data["cpu_seconds"] = round(data["cpu_seconds"] + time.process_time() - start, 1)
                FILE.write_text(json.dumps(data).replace('{"task"', '\n{"task"') + "\n", "utf8")
                print(task, hidden_size, seed, f"{found[-1].exact_match:.4f}", flush=True)


if __name__ == "__main__":
    main()
