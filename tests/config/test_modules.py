"""The list of modules is the one description of an architecture."""

import pytest

from llmbook.config import ModelConfig
from llmbook.config.modules import linear, modules
from llmbook.zoo.catalogue import cards


def test_a_linear_layer_counts_as_torch_does():
    from torch import nn

    for bias in (True, False):
        ours = linear("any", "attention", 7, 11, bias=bias).parameters
        assert ours == sum(weight.numel() for weight in nn.Linear(7, 11, bias=bias).parameters())


@pytest.mark.parametrize("name", cards())
def test_names_are_unique_and_every_block_module_is_repeated(name):
    config = cards()[name].config
    found = modules(config)
    assert len({module.name for module in found}) == len(found)
    for module in found:
        copies = config.num_layers if "layers.*." in module.name else 1
        if ".mlp." in module.name and config.num_experts:
            routed = any(part in module.name for part in ("router", "experts", "shared"))
            copies = copies - config.num_dense_layers if routed else config.num_dense_layers
        copies *= config.num_experts if "experts.*." in module.name else 1
        assert module.copies == copies


def test_a_tied_head_has_no_weights_of_its_own():
    config = ModelConfig(vocab_size=9, hidden_size=4, num_layers=1, num_heads=2, max_seq_len=3)
    assert not [module for module in modules(config) if module.part == "output_head"]
    assert [
        module
        for module in modules(config.but(tie_embeddings=False))
        if module.part == "output_head"
    ]


def test_a_token_meets_k_of_e_experts_and_all_else():
    config = ModelConfig(
        vocab_size=9, hidden_size=4, num_layers=3, num_heads=2, max_seq_len=3, num_experts=5,
        experts_per_token=2,
    )  # fmt: skip
    for module in modules(config):
        assert module.idle == (3 * (5 - 2) if "experts" in module.name else 0), module.name
