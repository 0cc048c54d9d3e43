"""Exact parameter counts of a decoder, summed over the list of its modules.

Page: foundations/parameters. Papers: radford2019language, brown2020language, touvron2023llamaa.
Left out: adapters (training/finetuning), which come with their page.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmbook.config import ModelConfig
from llmbook.config.modules import Part, modules


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, each counted once; total = embedding + output_head + non_embedding."""

    total: int
    embedding: int  # tables of tokens and positions
    output_head: int  # 0 where the head is the token table itself
    non_embedding: int  # blocks and norms
    active: int  # those that one token meets: of a mixture's experts, the chosen ones
    by_module: dict[str, int]  # module name -> parameters of all its copies


def parameter_count(config: ModelConfig) -> ParameterCount:
    """Count every parameter of the model.

    Norms, a norm of the embeddings included, count as non-embedding; position tables as embedding.

    >>> llama_7b = ModelConfig(vocab_size=32_000, hidden_size=4096, num_layers=32, num_heads=32,
    ...     intermediate_size=11_008, max_seq_len=2048, positions="rotary", norm="rms_norm", gated=True,
    ...     attention_bias=False, attention_output_bias=False, mlp_bias=False, tie_embeddings=False)
    >>> parameter_count(llama_7b).total
    6738415616
    """
    found = modules(config)
    by_module = {module.name: module.copies * module.parameters for module in found}

    def of(*parts: Part) -> int:
        return sum(by_module[module.name] for module in found if module.part in parts)

    return ParameterCount(
        total=sum(by_module.values()),
        embedding=of("embedding"),
        output_head=of("output_head"),
        non_embedding=of("projection", "attention", "feed_forward", "norm"),
        active=sum((module.copies - module.idle) * module.parameters for module in found),
        by_module=by_module,
    )


def rule_of_thumb(config: ModelConfig) -> int:
    """12 L D²: four D x D matrices of attention and two of D x 4D, nothing else (kaplan2020scaling, table 1).

    Assumes K = N, N H = D, F = 4 D, no gate; leaves out biases, norms, embeddings and head.

    >>> rule_of_thumb(ModelConfig(vocab_size=50_257, hidden_size=768, num_layers=12, num_heads=12, max_seq_len=1024))
    84934656
    """
    return 12 * config.num_layers * config.hidden_size**2
