"""One decoder-only transformer, driven by one `ModelConfig`; every page runs this one.

Page: foundations/decoder. Papers: radford2019language, black2022gptneox20b, zhang2022opt,
bigscienceworkshop2022bloom, touvron2023llamaa, li2023starcoder, almazrouei2023falcon, du2022glm,
jiang2024mixtral, deepseekai2024deepseekv3. The names of its weights are those of `llmbook.config.modules`.
A field of the config chooses a layer; nothing here knows a family.
Left out: dropout, and what foundations/language_modelling brings: losses and generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.attention import (
    Attention,
    KVCache,
    LatentAttention,
    causal_mask,
    prefix_mask,
    window_mask,
)
from llmbook.foundations.mixture_of_experts import MixtureOfExperts
from llmbook.foundations.normalization import norm
from llmbook.foundations.positions import (
    Rotation,
    alibi_bias,
    configured_rotation,
    positions_under_padding,
    yarn_magnitude,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
}


class MLP(nn.Module):
    """The feed-forward layer: down(act(up(x))), or down(act(gate(x)) * up(x)) (shazeer2020glu)."""

    def __init__(self, config: ModelConfig, *, width: int = 0) -> None:
        super().__init__()
        D, F = config.hidden_size, width or config.intermediate_size
        self.gate = nn.Linear(D, F, bias=config.mlp_bias) if config.gated else None
        self.up = nn.Linear(D, F, bias=config.mlp_bias)
        self.down = nn.Linear(F, D, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Each token by itself."""
        if self.gate is None:
            inner = self.activation(self.up(hidden))  # ... F
        else:
            inner = self.activation(self.gate(hidden)) * self.up(hidden)  # ... F
        output: Tensor = self.down(inner)
        return output


def feed_forward(config: ModelConfig, layer: int) -> MLP | MixtureOfExperts:
    """One network for all tokens, or several behind a router, and perhaps one beside it."""
    if layer < config.num_layers - config.num_sparse_layers:
        return MLP(config)
    width, shared = config.expert_width, config.num_shared_experts
    return MixtureOfExperts(
        [MLP(config, width=width) for _ in range(config.num_experts)],
        hidden_size=config.hidden_size,
        experts_per_token=config.experts_per_token,
        shared=MLP(config, width=shared * width) if shared else None,
        router=config.router,
        router_bias=config.router_bias,
        scale=config.routed_scale,
        num_groups=config.num_expert_groups,
        groups_per_token=config.groups_per_token,
    )


def attention_layer(config: ModelConfig) -> Attention | LatentAttention:
    """Keys and values of each head, or all from one latent."""
    if not config.kv_latent_dim:
        return Attention(config)
    return LatentAttention(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        latent_dim=config.kv_latent_dim,
        rope_dim=config.rope_dim,
        query_latent_dim=config.query_latent_dim,
        magnitude=yarn_magnitude(config.rope_factor) if config.rope_scaling == "yarn" else 1.0,
    )


class Block(nn.Module):
    """Attention and feed-forward layer, each added to the residual stream.

    The norm stands before each layer; in a sandwich (ding2021cogview) also after it, before the
    addition; or, in OPT-350M as in the first transformer, after each addition. In a parallel block
    both layers read the stream as it came in, each through its own norm (black2022gptneox20b,
    section 2.1.2) or both through one.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm_placement != "post"
        self.parallel = config.block != "sequential"
        self.one_norm = config.block == "parallel_shared_norm"
        between = norm if config.norm_placement == "sandwich" else lambda _: nn.Identity()
        self.attention_norm, self.attention = norm(config), attention_layer(config)
        self.attention_output_norm = between(config)
        self.mlp_norm = nn.Identity() if self.one_norm else norm(config)
        self.mlp, self.mlp_output_norm = feed_forward(config, layer), between(config)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        mask: Bool[Tensor, "B 1 T S"],
        bias: Float[Tensor, "B N T S"] | None = None,
        turn: Rotation | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """One step down the residual stream."""
        attend = partial(self.attention, mask=mask, bias=bias, turn=turn, cache=cache)
        if self.parallel:
            normed = self.attention_norm(hidden)
            beside = self.mlp_norm(normed if self.one_norm else hidden)
            hidden = hidden + attend(normed) + self.mlp(beside)
        elif self.norm_first:
            hidden = hidden + self.attention_output_norm(attend(self.attention_norm(hidden)))
            hidden = hidden + self.mlp_output_norm(self.mlp(self.mlp_norm(hidden)))
        else:
            hidden = self.attention_norm(hidden + attend(hidden))
            hidden = self.mlp_norm(hidden + self.mlp(hidden))
        return hidden


class Decoder(nn.Module):
    """Tokens in, logits of the next token out.

    >>> tiny = ModelConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=9)
    >>> Decoder(tiny)(torch.zeros(1, 9, dtype=torch.long)).shape
    torch.Size([1, 9, 256])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        V, D, W = config.vocab_size, config.hidden_size, config.embedding_size
        self.config = config
        self.embedding = nn.Embedding(V, W)
        self.project_in = nn.Linear(W, D, bias=False) if W != D else nn.Identity()
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_seq_len + config.position_offset, D)
        self.embedding_norm = norm(config) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.final_norm = norm(config) if config.final_norm else nn.Identity()
        self.project_out = nn.Linear(D, W, bias=False) if W != D else nn.Identity()
        self.head = None if config.tie_embeddings else nn.Linear(W, V, bias=False)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        caches: Sequence[KVCache] | None = None,
        attention_mask: Bool[Tensor, "B S"] | None = None,
        prefix: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits for the T tokens given, which follow those that the caches hold.

        `attention_mask` and `prefix` cover all S tokens, cached ones first. The first is false on
        padding, which stands left; the second is true on tokens that all may see, later ones too.

        Raises:
            ValueError: if masks or caches do not fit, a prefix comes in pieces, or a learned table
            of positions ends too early.
        """
        config, (B, T) = self.config, tokens.shape
        S = T + (len(caches[0]) if caches else 0)
        if caches is not None and len(caches) != config.num_layers:
            raise ValueError(
                f"{len(caches)} caches for {config.num_layers} layers: one each is needed"
            )
        if attention_mask is None:
            attention_mask = torch.ones(B, S, dtype=torch.bool, device=tokens.device)
        if config.positions == "learned" and config.max_seq_len < S:
            raise ValueError(f"{S} tokens do not fit into max_seq_len {config.max_seq_len}")

        mask = self.visible(attention_mask, prefix, num_queries=T, num_keys=S)
        positions = positions_under_padding(attention_mask)  # B S
        hidden = self.project_in(self.embedding(tokens))  # B T D
        bias = turn = None
        if config.positions == "learned":
            hidden = hidden + self.positions(positions[:, -T:] + config.position_offset)
        elif config.positions == "alibi":
            bias = config.alibi_scale * alibi_bias(
                positions, num_queries=T, num_heads=config.num_heads, dtype=hidden.dtype
            )
        else:
            turn = configured_rotation(config, positions[:, -T:], dtype=hidden.dtype)
        hidden = self.embedding_norm(hidden)
        for layer, cache in zip(
            self.layers, caches or repeat(None, config.num_layers), strict=True
        ):
            hidden = layer(hidden, mask=mask, bias=bias, turn=turn, cache=cache)
        hidden = self.project_out(self.final_norm(hidden))  # B T W
        # tied: the table itself, not a copy
        head = self.embedding if self.head is None else self.head
        return nn.functional.linear(hidden, head.weight)

    def visible(
        self,
        attention_mask: Bool[Tensor, "B _"],
        prefix: Bool[Tensor, "B _"] | None,
        *,
        num_queries: int,
        num_keys: int,
    ) -> Bool[Tensor, "B 1 T S"]:
        """Which of the S tokens each of the last T may see."""
        T, S, window = num_queries, num_keys, self.config.sliding_window
        for name, mask in (("attention_mask", attention_mask), ("prefix", prefix)):
            if mask is not None and mask.shape[1] != S:
                raise ValueError(f"{name} covers {mask.shape[1]} of {S} tokens, cached ones too")
        if prefix is None:
            seen = window_mask(T, S, window=window) if window else causal_mask(T, S)
            return seen.to(attention_mask.device) & attention_mask[:, None, None, :]
        if window:
            raise ValueError(f"a prefix, which all may see, contradicts sliding_window {window}")
        if S > T and prefix[:, -T:].any():
            raise ValueError(
                f"a prefix reaches into the last {T} tokens, which {S - T} cached ones did not see"
            )
        return prefix_mask(prefix, num_queries=T) & attention_mask[:, None, None, :]


@torch.no_grad()
def initialise(decoder: Decoder, *, generator: torch.Generator, std: float = 0.02) -> Decoder:
    """Draw the weights as GPT-2 does, in place, and return the decoder (radford2019language, 2.3).

    Every matrix is normal with `std`; those that write into the residual stream are narrower by
    sqrt(2 L), so that their sum over 2 L additions keeps its size. Biases are zero, gains one.
    """
    writers = ("attention.output.weight", "down.weight")
    for name, weight in decoder.named_parameters():
        if weight.dim() == 2:
            narrow = (2 * decoder.config.num_layers) ** -0.5 if name.endswith(writers) else 1.0
            weight.normal_(0.0, std * narrow, generator=generator)
        elif name.endswith("bias"):
            weight.zero_()
        else:
            weight.fill_(1.0)
    return decoder
