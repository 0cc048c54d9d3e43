"""Cards: data with sources."""

import pytest

from llmbook.bibliography import entries
from llmbook.zoo.catalogue import card, cards, config, names


def test_every_card_names_a_source_that_can_be_cited():
    for found in cards().values():
        assert found.source in entries(), (
            f"{found.name} is sourced from {found.source}, which is no entry"
        )
        assert found.where
        assert found.organisation
        assert found.released.year >= 2018


def test_names_and_aliases_are_unique():
    every = [name for found in cards().values() for name in (found.name, *found.aliases)]
    assert len(set(every)) == len(every)
    assert all(name == name.lower() for name in every)


@pytest.mark.parametrize("alias", ["gpt2", "GPT2", "bloom", "llama1-7b"])
def test_the_hub_s_own_names_work(alias):
    assert card(alias).name == names()[alias.lower()]


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(KeyError, match="no model is called 'llama-7'; the nearest are llama-7b"):
        config("llama-7")
