"""Train one or both of the book's models: `python -m llmbook.foundations.weights small draft`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from llmbook.foundations.language_modelling import split_documents, token_stream
from llmbook.foundations.weights import RECIPES, made_tokenizer, trained


def main() -> None:
    """Train from the last checkpoint on."""
    parser = argparse.ArgumentParser(description="Train the book's own models.")
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    parser.add_argument("--checkpoints", type=Path, default=Path("build/weights"))
    arguments = parser.parse_args()
    arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    tokenizer = made_tokenizer()
    tokens = token_stream((document.text for document in split_documents()[0]), tokenizer)
    for name in arguments.names:
        checkpoint = arguments.checkpoints / f"{name}.pt"
        report = partial(print, name, flush=True)
        trained(RECIPES[name], tokens, checkpoint=checkpoint, report=report)


if __name__ == "__main__":
    main()
