"""The models of the zoo as data: one card a family, read from `zoo/cards/*.toml`.

Page: zoo/llama and the other pages of the chapter. No architecture number stands anywhere else.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from llmbook.config import ModelConfig


@dataclass(frozen=True)
class Card:
    """One model: who released it and when, where its sizes are printed, and its configuration."""

    family: str
    organisation: str
    released: date
    source: str  # citation key of the text that prints the sizes
    where: str  # table or page in it
    config: ModelConfig
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's own name, in lower case."""
        return self.config.name


@cache
def cards() -> dict[str, Card]:
    """Every card by the model's name, families in alphabetical order, sizes as the family lists them."""
    found: dict[str, Card] = {}
    for file in sorted(
        files("llmbook.zoo").joinpath("cards").iterdir(), key=lambda file: file.name
    ):
        if not file.name.endswith(".toml"):
            continue
        family = tomllib.loads(file.read_text(encoding="utf8"))
        for model in family["model"]:
            fields = {**family["shared"], **model}
            source, released = fields.pop("source"), fields.pop("released")
            aliases = tuple(fields.pop("aliases", ()))
            found[fields["name"]] = Card(
                family["family"], family["organisation"], released, source["key"], source["where"],
                ModelConfig(**fields), aliases,
            )  # fmt: skip
    return found


def names() -> dict[str, str]:
    """Every name that the zoo answers to, aliases included, and the card's own name for it."""
    return {alias: card.name for card in cards().values() for alias in (card.name, *card.aliases)}


def card(name: str) -> Card:
    """The card of a model.

    Raises:
        KeyError: if no card has the name; the message lists the nearest ones.

    >>> card("llama-7b").config.num_layers
    32
    """
    known = names()
    if name.lower() not in known:
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.4) or sorted(cards())
        raise KeyError(f"no model is called {name!r}; the nearest are {', '.join(near)}")
    return cards()[known[name.lower()]]


def config(name: str) -> ModelConfig:
    """The configuration of a model of the zoo.

    Raises:
        KeyError: if no card has the name.

    >>> config("gpt2").vocab_size
    50257
    """
    return card(name).config
