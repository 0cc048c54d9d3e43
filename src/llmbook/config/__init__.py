"""One frozen description of a decoder-only transformer, read by every floor of the library.

Page: notation, whose names and letters the fields bear. A config chooses layers; there is no branch per family.
Left out: recurrent layers, which come with their page.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Positions = Literal["learned", "rotary", "alibi"]
NormKind = Literal["layer_norm", "rms_norm"]
RopeScaling = Literal["llama3", "linear", "ntk", "yarn"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
NormPlacement = Literal["pre", "post", "sandwich"]
Block = Literal["sequential", "parallel", "parallel_shared_norm"]
Router = Literal["top_softmax", "softmax", "sigmoid"]
CHOICES = {
    "positions": get_args(Positions),
    "rope_scaling": get_args(RopeScaling),
    "norm": get_args(NormKind),
    "norm_placement": get_args(NormPlacement),
    "block": get_args(Block),
    "activation": get_args(Activation),
    "router": get_args(Router),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What must be known to build a decoder and to count everything in it.

    Widths and counts are those of the notation page: D `hidden_size`, L `num_layers`, N `num_heads`,
    K `num_kv_heads`, H `head_dim`, F `intermediate_size`, V `vocab_size`, E `num_experts`, k
    `experts_per_token`.
    `num_kv_heads`, `head_dim`, `intermediate_size` and `embedding_size` may be left out:
    they become N, D / N, 4 D and D.

    Raises:
        ValueError: if a size is not positive, one does not divide another as it must, a name is
        none of the known ones, or two fields contradict each other.

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
    rotary_fraction: float = 1.0  # GPT-NeoX turns the first quarter of each head alone
    alibi_scale: float = 1.0  # Falcon-RW divides its ALiBi by sqrt(H), as it does the scores
    sliding_window: int = 0  # tokens that a query sees, its own among them; 0: all
    norm: NormKind = "layer_norm"
    norm_epsilon: float = 1e-5
    norm_placement: NormPlacement = "pre"
    block: Block = "sequential"  # parallel: attention and feed-forward layer read the same stream
    embedding_norm: bool = False  # BLOOM normalises the embeddings
    final_norm: bool = True
    activation: Activation = "gelu_tanh"
    gated: bool = False  # SwiGLU and its relatives: a third matrix gates the feed-forward layer
    num_experts: int = 0  # feed-forward layers behind a router in each block; 0: one, no router
    experts_per_token: int = 0
    expert_intermediate_size: int = 0  # width inside an expert; 0: F, as in Mixtral
    num_shared_experts: int = 0  # experts that every token meets beside the routed ones
    num_dense_layers: int = 0  # the first so many blocks have no router; DeepSeek-V3 has 3
    router: Router = "top_softmax"  # what makes scores into weights
    router_bias: bool = False  # added to choose, not to weigh: balances the load without a loss
    routed_scale: float = 1.0  # factor on the weights of routed experts
    num_expert_groups: int = 1  # DeepSeek-V3's router first chooses 4 groups of 8 ...
    groups_per_token: int = 1  # ... and experts in these alone
    kv_latent_dim: int = 0  # latent attention's C; 0: every head has keys and values of its own
    query_latent_dim: int = 0  # the same for queries; 0: they come from the stream itself
    rope_dim: int = 0  # latent attention turns so many numbers beside the H of a head
    attention_bias: bool = True  # on query, key and value
    attention_output_bias: bool = True
    mlp_bias: bool = True
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field} {getattr(self, field)!r} is none of {', '.join(known)}")
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
        for broken, rule in self.rules():
            if broken:
                raise ValueError(rule)

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that rotary positions turn; the others pass as they are."""
        return self.rope_dim or int(self.head_dim * self.rotary_fraction)

    @property
    def expert_width(self) -> int:
        """Width inside one expert: its own, or F."""
        return self.expert_intermediate_size or self.intermediate_size

    @property
    def num_sparse_layers(self) -> int:
        """Blocks with a router."""
        return self.num_layers - self.num_dense_layers if self.num_experts else 0

    def rules(self) -> list[tuple[bool, str]]:
        """What must not be, and the sentence that says so."""
        N, K, H, E, k = (
            self.num_heads, self.num_kv_heads, self.head_dim, self.num_experts,
            self.experts_per_token,
        )  # fmt: skip
        fraction, rotary = self.rotary_fraction, self.positions == "rotary"
        return [
            *self.latent_rules(),
            (N % K != 0, f"num_heads {N} is not a multiple of num_kv_heads {K}"),
            (rotary and H % 2 != 0, f"head_dim {H} is odd: rotary positions turn pairs"),
            (
                not 0 < fraction <= 1,
                f"rotary_fraction {fraction} is not a share of a head: above 0, at most 1",
            ),
            (
                rotary and (self.rotary_dim < 2 or self.rotary_dim % 2 != 0),
                f"rotary_fraction {fraction} of head_dim {H} is {self.rotary_dim} numbers: "
                "rotary positions turn pairs",
            ),
            (
                fraction != 1 and not rotary,
                f"rotary_fraction {fraction} contradicts positions {self.positions!r}",
            ),
            (
                self.alibi_scale != 1 and self.positions != "alibi",
                f"alibi_scale {self.alibi_scale} contradicts positions {self.positions!r}",
            ),
            (
                self.position_offset != 0 and self.positions != "learned",
                f"position_offset {self.position_offset} contradicts positions {self.positions!r}",
            ),
            (self.position_offset < 0, f"position_offset {self.position_offset} is negative"),
            (self.sliding_window < 0, f"sliding_window {self.sliding_window} is negative"),
            (
                self.block != "sequential" and self.norm_placement != "pre",
                f"block {self.block!r} contradicts norm_placement {self.norm_placement!r}: its "
                "norms stand before",
            ),
            (E < 0, f"num_experts {E} is negative"),
            (
                E > 0 and not 1 <= k <= E,
                f"experts_per_token {k} is not between 1 and num_experts {E}",
            ),
            (E == 0 and k != 0, f"experts_per_token {k} contradicts num_experts 0"),
            *self.expert_rules(),
        ]

    def expert_rules(self) -> list[tuple[bool, str]]:
        """The same for what is finer in a layer with experts."""
        E, k, G = self.num_experts, self.experts_per_token, self.num_expert_groups
        chosen, defaults = self.groups_per_token, type(self).__dataclass_fields__
        fields = (
            "expert_intermediate_size", "num_shared_experts", "num_dense_layers", "router",
            "router_bias", "routed_scale", "num_expert_groups", "groups_per_token",
        )  # fmt: skip
        return [
            *(
                (
                    E == 0 and getattr(self, field) != defaults[field].default,
                    f"{field} {getattr(self, field)!r} contradicts num_experts 0",
                )
                for field in fields
            ),
            *(
                (getattr(self, field) < 0, f"{field} {getattr(self, field)} is negative")
                for field in fields[:3]
            ),
            (
                E > 0 and self.num_dense_layers >= self.num_layers,
                f"num_dense_layers {self.num_dense_layers} leaves none of num_layers "
                f"{self.num_layers} to num_experts {E}",
            ),
            (self.routed_scale <= 0, f"routed_scale {self.routed_scale} is not positive"),
            (
                E > 0 and (G < 1 or E % G != 0),
                f"num_experts {E} is not a multiple of num_expert_groups {G}",
            ),
            (
                not 1 <= chosen <= G,
                f"groups_per_token {chosen} is not between 1 and num_expert_groups {G}",
            ),
            (
                E > 0 and G > 0 and k * G > chosen * E,
                f"experts_per_token {k} do not fit into {chosen} of {G} groups of {E // max(G, 1)}",
            ),
            (
                G > 1 and E < 2 * G,
                f"num_expert_groups {G} of num_experts {E} have one expert each: the two best of a "
                "group are its score",
            ),
        ]

    def latent_rules(self) -> list[tuple[bool, str]]:
        """The same for latent attention."""
        C, r, biased = self.kv_latent_dim, self.rope_dim, self.attention_bias
        return [
            *(
                (getattr(self, field) < 0, f"{field} {getattr(self, field)} is negative")
                for field in ("kv_latent_dim", "query_latent_dim", "rope_dim")
            ),
            (
                C == 0 and (r != 0 or self.query_latent_dim != 0),
                f"rope_dim {r} or query_latent_dim {self.query_latent_dim} contradicts "
                "kv_latent_dim 0",
            ),
            (
                C > 0 and (r < 2 or r % 2 != 0),
                f"rope_dim {r} is no number of pairs: rotary positions turn pairs",
            ),
            (
                C > 0 and (self.positions != "rotary" or self.rotary_fraction != 1),
                f"kv_latent_dim {C} contradicts positions {self.positions!r} turning "
                f"{self.rotary_fraction:.0%} of a head: rope_dim numbers are turned",
            ),
            (
                C > 0 and self.num_kv_heads != self.num_heads,
                f"kv_latent_dim {C} contradicts num_kv_heads {self.num_kv_heads} of num_heads "
                f"{self.num_heads}: the latent serves all",
            ),
            (
                C > 0 and (biased or self.attention_output_bias),
                f"kv_latent_dim {C} contradicts attention_bias {biased} and attention_output_bias "
                f"{self.attention_output_bias}: its matrices have none",
            ),
        ]

    def but(self, **changes: Any) -> ModelConfig:
        """The same model with some fields changed: how the book compares two architectures.

        Widths that were derived are kept, so `but(hidden_size=...)` needs the others spelled out.

        >>> tiny = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=128)
        >>> tiny.but(num_kv_heads=1).num_kv_heads
        1
        """
        return replace(self, **changes)


def differences(one: ModelConfig, other: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, and both values; the name is none of them.

    >>> tiny = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=128)
    >>> differences(tiny, tiny.but(num_layers=3, activation="relu"))
    {'num_layers': (2, 3), 'activation': ('gelu_tanh', 'relu')}
    """
    first, second = asdict(one), asdict(other)
    return {
        field: (first[field], second[field])
        for field in first
        if field != "name" and first[field] != second[field]
    }
