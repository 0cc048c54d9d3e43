"""One frozen description of a decoder-only transformer, read by every floor of the library.

Page: notation, whose names and letters the fields bear. A config chooses layers; there is no branch per family.
Left out: experts, sliding windows, latent attention and recurrent layers, which come with their pages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Positions = Literal["learned", "rotary", "alibi"]
NormKind = Literal["layer_norm", "rms_norm"]
RopeScaling = Literal["llama3", "linear", "ntk", "yarn"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What must be known to build a decoder and to count everything in it.

    Widths and counts are those of the notation page: D `hidden_size`, L `num_layers`, N `num_heads`,
    K `num_kv_heads`, H `head_dim`, F `intermediate_size`, V `vocab_size`.
    `num_kv_heads`, `head_dim`, `intermediate_size` and `embedding_size` may be left out:
    they become N, D / N, 4 D and D.

    Raises:
        ValueError: if a size is not positive, or one does not divide another as it must.

    >>> tiny = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=128)
    >>> tiny.head_dim, tiny.num_kv_heads, tiny.intermediate_size
    (16, 4, 256)
    """

    name: str = "unnamed"
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_seq_len: int
    num_kv_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    embedding_size: int = 0  # width of the token table; OPT-350M projects 512 up to 1,024
    positions: Positions = "learned"
    position_offset: int = 0  # rows of a learned table before position 0; OPT has 2
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0  # Llama 3.1 slows the low rotary frequencies by this factor
    rope_trained_len: int = 8192  # ... which are those that turn less than once in so many tokens
    rope_scaling: RopeScaling = "llama3"  # ... and others slow other frequencies, or all
    norm: NormKind = "layer_norm"
    norm_epsilon: float = 1e-5
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    embedding_norm: bool = False  # BLOOM normalises the embeddings
    final_norm: bool = True
    activation: Activation = "gelu_tanh"
    gated: bool = False  # SwiGLU and its relatives: a third matrix gates the feed-forward layer
    attention_bias: bool = True  # on query, key and value
    attention_output_bias: bool = True
    mlp_bias: bool = True
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        defaults = {
            "num_kv_heads": self.num_heads,
            "head_dim": self.hidden_size // max(1, self.num_heads),
            "intermediate_size": 4 * self.hidden_size,
            "embedding_size": self.hidden_size,
        }
        for field in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_seq_len"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} {getattr(self, field)} is not positive")
        if self.head_dim == 0 and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        for field, default in defaults.items():
            if getattr(self, field) < 0:
                raise ValueError(f"{field} {getattr(self, field)} is negative")
            if getattr(self, field) == 0:
                object.__setattr__(self, field, default)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: rotary positions turn pairs")

    def but(self, **changes: Any) -> ModelConfig:
        """The same model with some fields changed: how the book compares two architectures.

        Widths that were derived are kept, so `but(hidden_size=...)` needs the others spelled out.

        >>> tiny = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=128)
        >>> tiny.but(num_kv_heads=1).num_kv_heads
        1
        """
        return replace(self, **changes)
