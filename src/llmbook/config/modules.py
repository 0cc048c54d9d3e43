"""The list of a decoder's modules: names, weights and how often each stands there.

An architecture is described once, here; `llmbook.costs` derives parameters, FLOPs and bytes from it.
Page: foundations/parameters. The names are those of `llmbook.foundations.decoder`'s state dict,
with `layers.*` for the block that is repeated, and `experts.*` for the expert in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from llmbook.config import ModelConfig

Part = Literal["embedding", "projection", "attention", "feed_forward", "norm", "output_head"]


@dataclass(frozen=True)
class Module:
    """One kind of module: where it stands, the shapes of its weights, and how many the model has."""

    name: str
    part: Part
    weights: tuple[tuple[int, ...], ...]
    copies: int = 1
    idle: int = 0  # copies that one token does not meet: the experts that its router leaves out

    @property
    def parameters(self) -> int:
        """Parameters of one copy."""
        return sum(prod(shape) for shape in self.weights)


def linear(
    name: str,
    part: Part,
    inputs: int,
    outputs: int,
    *,
    bias: bool,
    copies: int = 1,
    idle: int = 0,
) -> Module:
    """A linear layer: a matrix of shape (outputs, inputs), and a bias of length outputs.

    >>> linear("layers.*.mlp.up", "feed_forward", 768, 3072, bias=True).parameters
    2362368
    """
    bias_shape: tuple[tuple[int, ...], ...] = ((outputs,),) if bias else ()
    return Module(name, part, ((outputs, inputs), *bias_shape), copies, idle)


def norm(name: str, config: ModelConfig, *, copies: int = 1) -> Module:
    """A normalization over D: LayerNorm has a gain and a bias, RMSNorm a gain alone."""
    D = config.hidden_size
    return Module(name, "norm", ((D,), (D,)) if config.norm == "layer_norm" else ((D,),), copies)


def embedding_modules(config: ModelConfig) -> list[Module]:
    """The token table, its projection where it is narrower than the model, and learned positions."""
    V, D, W = config.vocab_size, config.hidden_size, config.embedding_size
    found = [Module("embedding", "embedding", ((V, W),))]
    if W != D:
        found.append(linear("project_in", "projection", W, D, bias=False))
    if config.positions == "learned":
        found.append(
            Module("positions", "embedding", ((config.max_seq_len + config.position_offset, D),))
        )
    if config.embedding_norm:
        found.append(norm("embedding_norm", config))
    return found


def mlp_modules(
    stem: str, config: ModelConfig, width: int, *, copies: int, idle: int = 0
) -> list[Module]:
    """Two matrices between D and the width, or three where one gates."""
    D, bias, many = config.hidden_size, config.mlp_bias, {"copies": copies, "idle": idle}
    inward = ("gate", "up") if config.gated else ("up",)
    return [
        *(linear(f"{stem}.{n}", "feed_forward", D, width, bias=bias, **many) for n in inward),
        linear(f"{stem}.down", "feed_forward", width, D, bias=bias, **many),
    ]


def feed_forward_modules(config: ModelConfig) -> list[Module]:
    """The feed-forward layer of a block, or the router and all experts of it."""
    D, F, width, sparse = (
        config.hidden_size, config.intermediate_size, config.expert_width,
        config.num_sparse_layers,
    )  # fmt: skip
    E, k, shared = config.num_experts, config.experts_per_token, config.num_shared_experts
    stem, dense = "layers.*.mlp", config.num_layers - sparse
    found = mlp_modules(stem, config, F, copies=dense) if dense else []
    if E:
        bias, many = config.router_bias, {"copies": sparse * E, "idle": sparse * (E - k)}
        found.append(linear(f"{stem}.router", "feed_forward", D, E, bias=bias, copies=sparse))
        found += mlp_modules(f"{stem}.experts.*", config, width, **many)
    if shared:  # side by side they are one wide network
        found += mlp_modules(f"{stem}.shared", config, shared * width, copies=sparse)
    return found


def attention_modules(config: ModelConfig) -> list[Module]:
    """The four matrices of attention, or those between the stream, the latents and the heads."""
    D, L, N, H = config.hidden_size, config.num_layers, config.num_heads, config.head_dim
    kv, C, narrow, r = (
        config.num_kv_heads * H, config.kv_latent_dim, config.query_latent_dim, config.rope_dim,
    )  # fmt: skip
    bias, stem = config.attention_bias, "layers.*.attention"
    shapes = {"query": (D, N * H), "key": (D, kv), "value": (D, kv)}
    if C:
        shapes = {"query_down": (D, narrow)} if narrow else {}
        shapes |= {
            "query_up": (narrow or D, N * (H + r)), "down": (D, C + r), "key_up": (C, N * H),
            "value_up": (C, N * H),
        }  # fmt: skip
    norms = {"query_norm": narrow, "latent_norm": C}
    return [
        *(linear(f"{stem}.{n}", "attention", *s, bias=bias, copies=L) for n, s in shapes.items()),
        *(Module(f"{stem}.{n}", "norm", ((w,),), L) for n, w in norms.items() if w),
        linear(
            f"{stem}.output", "attention", N * H, D, bias=config.attention_output_bias, copies=L
        ),
    ]


def block_modules(config: ModelConfig) -> list[Module]:
    """The modules of one block, each with as many copies as the model has layers."""
    L = config.num_layers
    sandwich = config.norm_placement == "sandwich"  # two more norms, each after its layer
    attention_after = [norm("layers.*.attention_output_norm", config, copies=L)] if sandwich else []
    mlp_before = [norm("layers.*.mlp_norm", config, copies=L)]
    mlp_after = [norm("layers.*.mlp_output_norm", config, copies=L)] if sandwich else []
    return [
        norm("layers.*.attention_norm", config, copies=L),
        *attention_modules(config),
        *attention_after,
        *(mlp_before if config.block != "parallel_shared_norm" else []),
        *feed_forward_modules(config),
        *mlp_after,
    ]


def head_modules(config: ModelConfig) -> list[Module]:
    """What stands after the last block: the last norm, a projection to the table's width, the head."""
    V, D, W = config.vocab_size, config.hidden_size, config.embedding_size
    found = [norm("final_norm", config)] if config.final_norm else []
    if W != D:
        found.append(linear("project_out", "projection", D, W, bias=False))
    if not config.tie_embeddings:
        found.append(linear("head", "output_head", W, V, bias=False))
    return found


def modules(config: ModelConfig) -> list[Module]:
    """Every module of the model, in the order in which a token meets them.

    >>> config = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=128)
    >>> [module.name for module in modules(config)][:3]
    ['embedding', 'positions', 'layers.*.attention_norm']
    """
    return [*embedding_modules(config), *block_modules(config), *head_modules(config)]
