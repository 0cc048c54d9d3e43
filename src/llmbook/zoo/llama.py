"""What LLaMA alone has: its rule for the feed-forward width, and its names in transformers.

Page: zoo/llama. Papers: touvron2023llamaa, touvron2023llamab, grattafiori2024llama.
The sizes stand in the cards.
Left out: the mathematics, which `foundations.decoder` shares with every family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmbook.config import ModelConfig
from llmbook.foundations.decoder import Decoder

NAMES = {
    "embedding": "model.embed_tokens",
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
"""Our module and transformers' for it; those of a block without `layers.*`."""


def feed_forward_width(hidden_size: int, *, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Width F: two thirds of 4 D (touvron2023llamaa, 2.2), later times a multiplier, rounded up.

    Two thirds, because a gated layer has three matrices where GPT's has two. The rounding and the
    multiplier stand in the reference code: both products are cut to whole numbers before
    `multiple_of` rounds up.

    >>> feed_forward_width(4096), feed_forward_width(4096, multiple_of=1024, multiplier=1.3)
    (11008, 14336)
    """
    width = int(multiplier * int(2 * 4 * hidden_size / 3))
    return -(-width // multiple_of) * multiple_of


def transformers_name(weight: str) -> str:
    """The name in transformers of a weight of `foundations.decoder`.

    Raises:
        ValueError: if LLaMA has no such weight.

    >>> transformers_name("layers.3.mlp.gate.weight")
    'model.layers.3.mlp.gate_proj.weight'
    """
    parts = re.fullmatch(r"(layers\.\d+\.)?(.+)\.(weight|bias)", weight)
    if parts is None or parts[2] not in NAMES:
        raise ValueError(f"weight {weight!r} is none of LLaMA's: {', '.join(NAMES)}")
    return (f"model.{parts[1]}" if parts[1] else "") + f"{NAMES[parts[2]]}.{parts[3]}"


def load_from_transformers(decoder: Decoder, state: Mapping[str, Tensor]) -> Decoder:
    """Copy the weights of a `LlamaForCausalLM` into the decoder, in place, and return it.

    Raises:
        ValueError: if either has a weight that the other lacks; a tied decoder has no place for a
        head that differs from the table.
    """
    wanted = {name: transformers_name(name) for name in decoder.state_dict()}
    spare = set(state) ^ set(wanted.values())
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if decoder.config.tie_embeddings and spare == {head} and torch.equal(state[head], state[table]):
        spare = set()  # a tied file may hold the table under its second name too
    if spare:
        raise ValueError(f"weights {', '.join(sorted(spare))} stand in one of the two models alone")
    decoder.load_state_dict({ours: state[theirs] for ours, theirs in wanted.items()})
    return decoder


def transformers_config(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of transformers' `LlamaConfig` for the same model.

    Raises:
        ValueError: if the model is none of the family's.
    """
    fixed = {
        "positions": "rotary", "norm": "rms_norm", "norm_placement": "pre", "embedding_norm": False,
        "final_norm": True, "gated": True, "activation": "silu",
        "embedding_size": config.hidden_size, "attention_output_bias": config.attention_bias,
        "rope_scaling": "llama3",
    }  # fmt: skip
    for field, value in fixed.items():
        if getattr(config, field) != value:
            raise ValueError(f"{field} {getattr(config, field)!r} is not LLaMA's {value!r}")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_factor != 1:
        rope |= {"rope_type": "llama3", "factor": config.rope_factor, "low_freq_factor": 1.0}
        rope |= {
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": config.rope_trained_len,
        }
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
    }
