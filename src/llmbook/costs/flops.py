"""FLOPs of a pass over the model, module by module, and the share of a machine's peak that they use.

Page: foundations/flops. Papers: kaplan2020scaling (2P and 6P), narayanan2021efficient, eq. (3)
(recomputation), chowdhery2022palm, appendix B (utilisation). A product of a (a, b) and a (b, c)
matrix takes 2 a b c FLOPs.
Left out: everything that is no matrix product (softmax, norms, activations, rotations, looking up),
as PyTorch's counter leaves it out; seconds (inference/latency).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from llmbook.config import ModelConfig
from llmbook.config.modules import Module, modules

Attention = Literal["full", "causal"]
Recomputation = Literal["none", "selective", "full"]

SCORES = "layers.*.attention.scores"  # queries times keys: no weights, so not among the modules
MIX = "layers.*.attention.mix"  # scores times values


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one pass, as integers."""

    total: int
    by_module: dict[str, int]  # module name -> FLOPs of all its copies

    @property
    def attention(self) -> int:
        """Products of activations with activations: what grows with the context."""
        return self.by_module[SCORES] + self.by_module[MIX]

    @property
    def blocks(self) -> int:
        """What is done inside the blocks; the rest is the head and narrow tables' projections."""
        return sum(n for name, n in self.by_module.items() if name.startswith("layers."))


def attended_pairs(
    *, seq_len: int, context_len: int, attention: Attention, sliding_window: int = 0
) -> int:
    """Pairs of a query and a key that are multiplied, for T queries at the end of S tokens.

    "full" is the whole rectangle T S, computed before a mask hides a part of it; "causal" only
    what the mask leaves, T S - T (T - 1) / 2, or less under a sliding window: what a kernel must
    compute that skips the rest.

    >>> attended_pairs(seq_len=4, context_len=4, attention="full")
    16
    >>> attended_pairs(seq_len=4, context_len=4, attention="causal")
    10
    """
    if attention not in ("full", "causal"):
        raise ValueError(f"attention {attention!r} is neither 'full' nor 'causal'")
    if seq_len < 1 or context_len < seq_len:
        raise ValueError(f"seq_len {seq_len} is not between 1 and context_len {context_len}")
    if attention == "full":
        return seq_len * context_len
    window = sliding_window or context_len

    def seen_by_the_first(queries: int) -> int:
        growing = min(queries, window)
        return growing * (growing + 1) // 2 + (queries - growing) * window

    return seen_by_the_first(context_len) - seen_by_the_first(context_len - seq_len)


def products_per_token(module: Module) -> int:
    """Multiply-adds that one token causes in all copies of a module that it meets."""
    matrices = sum(prod(shape) for shape in module.weights if len(shape) == 2)
    return 0 if module.part == "embedding" else (module.copies - module.idle) * matrices


def forward_flops(
    config: ModelConfig,
    *,
    seq_len: int,
    batch_size: int = 1,
    context_len: int | None = None,
    attention: Attention = "full",
) -> FlopCount:
    """FLOPs of one pass over T tokens of each of B sequences, with the logits of all of them.

    2 B T for each weight of a matrix (a tied head is one more product with the table), and
    4 B N H a layer for each pair of a query and a key: 2 H for its score, 2 H for its part of
    the mix. `context_len` is S, cached tokens included; None means T. Of a mixture's experts only
    the k that a token is given count. Latent attention counts as in training: each latent widened
    once, scores over H + r numbers.

    Raises:
        ValueError: if `seq_len` is not between 1 and `context_len`.

    >>> tiny = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=9)
    >>> forward_flops(tiny, seq_len=8).total
    1867776
    """
    pairs = attended_pairs(
        seq_len=seq_len,
        context_len=seq_len if context_len is None else context_len,
        attention=attention,
        sliding_window=config.sliding_window,
    )
    by_module = {
        module.name: 2 * batch_size * seq_len * products_per_token(module)
        for module in modules(config)
    }
    if config.tie_embeddings:
        by_module["head"] = 2 * batch_size * seq_len * config.vocab_size * config.embedding_size
    heads = 2 * batch_size * config.num_layers * config.num_heads * pairs
    by_module[SCORES] = heads * (config.head_dim + config.rope_dim)
    by_module[MIX] = heads * config.head_dim
    return FlopCount(sum(by_module.values()), by_module)


def training_flops(
    config: ModelConfig,
    *,
    seq_len: int,
    batch_size: int = 1,
    attention: Attention = "full",
    recomputation: Recomputation = "none",
) -> int:
    """FLOPs of one training step, optimizer left out: three forward passes, and what is repeated.

    The backward pass makes two products of each: one for the gradient of either factor. Full
    recomputation runs the blocks' forward pass once more, the head's not
    (narayanan2021efficient, eq. 3); selective recomputation repeats scores and mix alone
    (korthikanti2022reducing, section 5).

    >>> tiny = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=9)
    >>> training_flops(tiny, seq_len=8) == 3 * forward_flops(tiny, seq_len=8).total
    True
    """
    forward = forward_flops(config, seq_len=seq_len, batch_size=batch_size, attention=attention)
    repeated = {"none": 0, "selective": forward.attention, "full": forward.blocks}
    if recomputation not in repeated:
        raise ValueError(f"recomputation {recomputation!r} is none of {', '.join(repeated)}")
    return 3 * forward.total + repeated[recomputation]


def utilization(flops_per_token: float, *, tokens_per_second: float, peak_flops: float) -> float:
    """Share of the peak that a run uses: tokens a second, times FLOPs a token, over FLOP/s.

    With the FLOPs that the model needs it is the model FLOPs utilisation, MFU; with those that
    the machine did, recomputation included, the hardware FLOPs utilisation, HFU
    (chowdhery2022palm, section 4.1 and appendix B). `peak_flops` is that of all devices together,
    for dense matrices.

    >>> f"{utilization(6 * 540e9, tokens_per_second=238_300, peak_flops=6144 * 275e12):.1%}"
    '45.7%'
    """
    if peak_flops <= 0:
        raise ValueError(f"peak_flops {peak_flops} is not positive")
    return tokens_per_second * flops_per_token / peak_flops
