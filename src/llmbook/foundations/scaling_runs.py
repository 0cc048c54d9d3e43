"""Small decoders over a grid of sizes and tokens: `python -m llmbook.foundations.scaling_runs`.

Page: foundations/scaling_laws, which fits what this module measures; `scaling_runs.json` beside it
is what the command wrote. A run that stands there is not done again, so a stopped command goes on.
Each run has a schedule that ends with its own tokens (hoffmann2022training, section 3.1); the
longest of each size are also judged on the way, where their schedule has not ended.
Left out: a search for the best learning rate of every run; a rule is used, and judged at twice and
half its rates.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from llmbook.config import ModelConfig
from llmbook.corpus import HASH_FILE
from llmbook.costs.parameters import parameter_count
from llmbook.foundations.language_modelling import (
    held_out_loss,
    load,
    split_documents,
    token_stream,
)
from llmbook.foundations.weights import LLAMA, Recipe, Run, processor

FILE = Path(__file__).with_suffix(".json")
SEQ_LEN, BATCH_SIZE = 128, 8
STEP_TOKENS = SEQ_LEN * BATCH_SIZE
SIZES = (  # width, layers and the steps of the longest run, as the time allowed
    (16, 1, 1600),
    (32, 2, 1600),
    (48, 2, 800),
    (64, 3, 800),
    (96, 3, 800),
    (128, 4, 400),
)
STEPS = (200, 400, 800, 1600)  # the last is half an epoch of the corpus: nothing is repeated
HELD_OUT = ((64, 800), (96, 800), (128, 400))  # the dearest three: predicted, never fitted
NUM_FIRST_STEPS = 10  # a test repeats them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training: all that decides its loss, beside the corpus and the machine."""

    hidden_size: int
    num_layers: int
    num_steps: int
    seed: int = 0
    rate_factor: float = 1.0  # times the rule's learning rate

    @property
    def config(self) -> ModelConfig:
        """LLaMA's choices, heads 16 wide, the inner width 8/3 of the outer."""
        D = self.hidden_size
        return LLAMA.but(
            name=f"{D}x{self.num_layers}",
            hidden_size=D,
            embedding_size=D,
            num_layers=self.num_layers,
            num_heads=D // 16,
            num_kv_heads=D // 16,
            head_dim=16,
            intermediate_size=8 * D // 3 // 8 * 8,
            max_seq_len=SEQ_LEN,
        )

    @property
    def recipe(self) -> Recipe:
        """Peak rate 2 D^(-4/3), a tenth of the steps to warm up, first logits of size 1/2."""
        D = self.hidden_size
        return Recipe(
            config=self.config,
            num_steps=self.num_steps,
            peak_rate=self.rate_factor * 2 * D ** (-4 / 3),
            num_warmup_steps=self.num_steps // 10,
            batch_size=BATCH_SIZE,
            std=0.5 * D**-0.5,
            seed=self.seed,
        )


def plans() -> Iterator[Plan]:
    """All runs: those to fit, those to predict, and those that judge the choices."""
    for num_steps in STEPS:
        for D, L, most in SIZES:
            if num_steps <= most:
                yield Plan(hidden_size=D, num_layers=L, num_steps=num_steps)
    for D, L, _ in SIZES[:2]:  # how far the seed moves a loss
        yield Plan(hidden_size=D, num_layers=L, num_steps=400, seed=1)
    for D, L, _ in (SIZES[0], SIZES[3]):  # how good the rule for the rate is
        for factor in (0.5, 2.0):
            yield Plan(hidden_size=D, num_layers=L, num_steps=200, rate_factor=factor)


def texts() -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """Tokens to learn from, and those of every second held-out document."""
    tokenizer = load("draft")[1]
    training, held_out = split_documents()
    return (
        token_stream((document.text for document in training), tokenizer),
        token_stream((document.text for document in held_out[::2]), tokenizer),
    )


def measured(
    plan: Plan, training: Int[Tensor, " n"], held_out: Int[Tensor, " m"]
) -> dict[str, Any]:
    """Train, and tell the loss at the end and, of the longest runs, also on the way."""
    started = time.process_time()
    run = Run(plan.recipe, training)
    on_the_way: dict[str, float] = {}
    for steps in STEPS if plan.num_steps == STEPS[-1] else (plan.num_steps,):
        run.go_on(steps - len(run.losses))
        loss = held_out_loss(run.model, held_out, seq_len=SEQ_LEN, stride=SEQ_LEN)
        on_the_way[str(steps * STEP_TOKENS)] = round(loss, 4)
    count = parameter_count(plan.config)
    return {
        **asdict(plan),
        "parameters": count.total,
        "non_embedding": count.non_embedding,
        "num_tokens": plan.recipe.num_tokens,
        "peak_rate": round(plan.recipe.peak_rate, 6),
        "held_out_loss": on_the_way.pop(str(plan.recipe.num_tokens)),
        "on_the_way": on_the_way,
        "first_losses": [round(value, 4) for value in run.losses[:NUM_FIRST_STEPS]],
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def serialized(header: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """JSON with a line for each run."""
    lines = ",\n".join("  " + json.dumps(run) for run in runs)
    return json.dumps(header, indent=1)[:-2] + f',\n "runs": [\n{lines}\n ]\n}}\n'


def main() -> None:
    """Train what the file does not hold yet, and write it after every run."""
    parser = argparse.ArgumentParser(description="Train the small models of the scaling laws.")
    parser.add_argument("--to", type=Path, default=FILE, help="file that is written and resumed")
    file: Path = parser.parse_args().to
    torch.set_num_threads(1)  # the order of a sum, and so its last bit, depends on their number
    training, held_out = texts()
    header = {
        "command": "python -m llmbook.foundations.scaling_runs",
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "processor": processor(),
        "corpus_sha256": HASH_FILE.read_text("ascii").split()[0],
        "held_out_tokens": len(held_out),
        "recipe": "AdamW of foundations/weights, bf16 products, cosine to a tenth at the end",
    }
    runs = json.loads(file.read_text("utf8"))["runs"] if file.exists() else []
    for plan in plans():
        if not any(asdict(plan) == {key: run[key] for key in asdict(plan)} for run in runs):
            runs.append(measured(plan, training, held_out))
            file.write_text(serialized(header, runs), encoding="utf8")
            print(runs[-1], flush=True)


if __name__ == "__main__":
    main()
