"""Train the book's own models and write them beside this file: `python -m llmbook.foundations.weights`.

A run that was stopped goes on from its checkpoint; names of models may be given, to run two at once.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor

from llmbook.corpus import HASH_FILE
from llmbook.foundations.language_modelling import held_out_loss, split_documents, token_stream
from llmbook.foundations.weights import (
    FOLDER,
    NUM_FIRST_STEPS,
    RECIPES,
    Recipe,
    made_tokenizer,
    processor,
    serialized,
    sha256,
    trained,
)


def main() -> None:
    """Train, then export."""
    parser = argparse.ArgumentParser(description="Train the book's own models.")
    parser.add_argument("names", nargs="*", default=list(RECIPES), metavar="|".join(RECIPES))
    parser.add_argument("--checkpoints", type=Path, default=Path("build/weights"))
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the finished files")
    arguments = parser.parse_args()
    for folder in (arguments.checkpoints, arguments.to):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer = made_tokenizer()
    training, held_out = (
        token_stream((document.text for document in part), tokenizer) for part in split_documents()
    )
    for name in arguments.names:
        checkpoint = arguments.checkpoints / f"{name}.pt"
        model, losses = trained(
            RECIPES[name], training, checkpoint=checkpoint, report=partial(print, name, flush=True)
        )
        weights = serialized(model, torch.bfloat16)
        model.load_state_dict(safetensors.torch.load(weights))  # as they will be loaded
        (arguments.to / f"{name}.safetensors").write_bytes(weights)
        fields = {
            "sha256": sha256(weights),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "held_out_loss": round(
                held_out_loss(model, held_out, seq_len=model.config.max_seq_len), 4
            ),
            "training_loss": round(sum(losses[-100:]) / 100, 4),
            **card_fields(RECIPES[name], training),
        }
        (arguments.to / f"{name}.toml").write_text(toml(fields), encoding="utf8")
        (arguments.to / "tokenizer.json").write_bytes(tokenizer.to_bytes())
        print(name, sha256(weights))


def card_fields(recipe: Recipe, tokens: Int[Tensor, " n"]) -> dict[str, Any]:
    """What does not depend on the result; the first steps run once more, for a test repeats them."""
    first, first_losses = trained(recipe, tokens, num_steps=NUM_FIRST_STEPS)
    settings = {key: value for key, value in asdict(recipe).items() if key != "config"}
    return {
        "command": f"python -m llmbook.foundations.weights {recipe.config.name}",
        "num_tokens": recipe.num_tokens,
        "corpus_tokens": len(tokens),
        "corpus_sha256": HASH_FILE.read_text("ascii").split()[0],
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "processor": processor(),
        "recipe": settings,
        "first_steps": {
            "sha256": sha256(serialized(first, torch.float32)),
            "losses": [round(loss, 6) for loss in first_losses],
        },
        "config": asdict(recipe.config),
    }


def toml(fields: dict[str, Any]) -> str:
    """Scalars, lists and tables of them as TOML, which writes such values as JSON does."""
    lines = []
    for key, value in fields.items():
        if isinstance(value, dict):
            lines.append(f"\n[{key}]\n" + toml(value).rstrip())
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
