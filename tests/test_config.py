"""A config refuses what no model can be, and says why."""

import pytest

from llmbook.config import ModelConfig

SIZES = {"vocab_size": 16, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "max_seq_len": 8}


def test_derived_widths_are_the_classic_ones():
    config = ModelConfig(**SIZES)
    derived = (
        config.num_kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.embedding_size,
    )
    assert derived == (3, 4, 48, 12)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 5}, "hidden_size 12 is not a multiple of num_heads 5"),
        ({"num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"num_layers": 0}, "num_layers 0 is not positive"),
        ({"intermediate_size": -1}, "intermediate_size -1 is negative"),
        ({"positions": "rotary", "num_heads": 4}, "head_dim 3 is odd: rotary positions turn pairs"),
    ],
)
def test_an_impossible_config_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        ModelConfig(**(SIZES | changes))
