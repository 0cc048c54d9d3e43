"""Images before the text: patches, a vision transformer, a projector, a Q-Former, a contrastive loss.

Page: foundations/multimodal. Papers: radford2021learning, figure 3 (the loss of CLIP);
girdhar2023imagebind, eq. (1); liu2023visual, eq. (1) (a projector); li2023blip2, section 3.1, and
dai2023instructblip (queries that read the image, and the instruction).
Counts stand in `llmbook.costs.multimodal`.
Left out: dropout, cropping and resizing of images, the three losses of BLIP-2's first stage.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.costs.multimodal import QFormerConfig
from llmbook.foundations.attention import attention
from llmbook.foundations.decoder import Block, Decoder
from llmbook.foundations.normalization import norm


def patches(images: Float[Tensor, "B C h w"], *, size: int) -> Float[Tensor, "B T p"]:
    """Cut images into squares of `size` pixels, row by row, each flattened to p = C size² numbers.

    Raises:
        ValueError: if the squares do not tile the image.

    >>> patches(torch.arange(16.0).view(1, 1, 4, 4), size=2)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    h, w = images.shape[-2:]
    if h % size or w % size:
        raise ValueError(f"images of {h} x {w} pixels are not tiled by patches of size {size}")
    cut = images.unfold(2, size, size).unfold(3, size, size)  # B C h/p w/p p p
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class Encoder(nn.Module):
    """A vision transformer: a linear map of patches, learned positions, blocks in which all see all.

    The blocks are the decoder's own; `max_seq_len` of the config is the number of patches, and its
    vocabulary is not used. No class token: an image's vector is the mean over its patches.
    """

    def __init__(self, config: ModelConfig, *, patch_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(patch_dim, config.hidden_size)
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_seq_len, config.hidden_size))
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = norm(config)

    def forward(self, patches: Float[Tensor, "B T p"]) -> Float[Tensor, "B T D"]:
        """One vector a patch."""
        B, T, _ = patches.shape
        mask = torch.ones(B, 1, T, T, dtype=torch.bool, device=patches.device)
        hidden = self.embedding(patches) + self.positions
        for layer in self.layers:
            hidden = layer(hidden, mask=mask)
        normed: Tensor = self.final_norm(hidden)
        return normed


def info_nce(scores: Float[Tensor, "N M"]) -> Float[Tensor, ""]:
    """-ln of the share that the true partner has among N, both ways, averaged, in nats.

    Scores of true pairs stand on the diagonal (girdhar2023imagebind, eq. 1, which adds the two
    directions; radford2021learning, figure 3, halves their sum). ln N less this loss bounds from
    below what the two sides know of each other (vandenoord2018representation, section 2.3).

    Raises:
        ValueError: if rows and columns are not as many.

    >>> round(info_nce(torch.zeros(8, 8)).exp().item(), 4)  # all alike: one in eight
    8.0
    """
    if scores.shape[0] != scores.shape[1]:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} are not square: pairs share an index"
        )
    own = scores.diagonal()
    across, down = ((scores.logsumexp(dim) - own).mean() for dim in (1, 0))
    return (across + down) / 2


def contrastive_loss(
    one: Float[Tensor, "N D"], other: Float[Tensor, "N D"], *, temperature: float | Tensor
) -> Float[Tensor, ""]:
    """`info_nce` of cosines over a temperature: the loss of CLIP and of ImageBind.

    Row i of `one` belongs to row i of `other` (radford2021learning, figure 3).
    """
    rows, columns = (nn.functional.normalize(x, dim=-1) for x in (one, other))
    return info_nce(rows @ columns.T / temperature)


def logits_after(
    decoder: Decoder, vectors: Float[Tensor, "B M D"], tokens: Int[Tensor, "B T"]
) -> Float[Tensor, "B T V"]:
    """The decoder's logits for tokens that follow M vectors, which stand where words' embeddings would.

    Id 0 holds the place of each vector until the embedding has been looked up, then the vector
    takes it: masks, positions and blocks are the decoder's own.
    """
    M = vectors.shape[1]
    places = tokens.new_zeros(len(tokens), M)
    hook = decoder.embedding.register_forward_hook(
        lambda _module, _ids, looked_up: torch.cat((vectors, looked_up[:, M:]), dim=1)
    )
    try:
        logits: Tensor = decoder(torch.cat((places, tokens), dim=1))  # B M+T V
    finally:
        hook.remove()
    return logits[:, M:]


class VisionLanguageModel(nn.Module):
    """Encoder, connector, decoder: logits of text after an image (liu2023visual, figure 1)."""

    def __init__(self, encoder: nn.Module, connector: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.connector, self.decoder = encoder, connector, decoder

    def forward(
        self, patches: Float[Tensor, "B T p"], tokens: Int[Tensor, "B t"]
    ) -> Float[Tensor, "B t V"]:
        """What the decoder expects after each token, the image before all of them."""
        return logits_after(self.decoder, self.connector(self.encoder(patches)), tokens)


def train_only(model: nn.Module, *parts: nn.Module) -> int:
    """Freeze a model but for these parts; return how many parameters are left to train."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


class MultiHeadAttention(nn.Module):
    """From one sequence to another, added to the first and normalised, as BERT does it."""

    def __init__(self, config: QFormerConfig, *, source_dim: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_heads
        self.query, self.output = nn.Linear(D, D), nn.Linear(D, D)
        self.key, self.value = nn.Linear(source_dim, D), nn.Linear(source_dim, D)
        self.norm = nn.LayerNorm(D, eps=1e-12)

    def forward(
        self, hidden: Float[Tensor, "B M D"], source: Float[Tensor, "B S W"]
    ) -> Float[Tensor, "B M D"]:
        """Every row of `hidden` reads all of `source`."""
        rows = (self.query(hidden), self.key(source), self.value(source))
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in rows)
        mixed = attention(query, key, value).transpose(1, 2).flatten(2)
        normed: Tensor = self.norm(hidden + self.output(mixed))
        return normed


class FeedForward(nn.Module):
    """Two matrices around a GELU, added and normalised."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        D, F = config.hidden_size, config.intermediate_size
        self.up, self.down, self.norm = nn.Linear(D, F), nn.Linear(F, D), nn.LayerNorm(D, eps=1e-12)

    def forward(self, hidden: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        """Each row by itself."""
        inner = nn.functional.gelu(self.up(hidden))
        normed: Tensor = self.norm(hidden + self.down(inner))
        return normed


class QFormerBlock(nn.Module):
    """Queries and text attend to one another, queries alone to the image; each has its own MLP."""

    def __init__(self, config: QFormerConfig, *, sees_image: bool) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config, source_dim=config.hidden_size)
        self.cross = (
            MultiHeadAttention(config, source_dim=config.image_size) if sees_image else None
        )
        self.query_mlp = FeedForward(config)
        self.text_mlp = FeedForward(config) if config.vocab_size else None

    def forward(
        self, hidden: Float[Tensor, "B M D"], image: Float[Tensor, "B S W"], *, num_queries: int
    ) -> Float[Tensor, "B M D"]:
        """One block; the first `num_queries` rows are the queries."""
        hidden = self.attention(hidden, hidden)
        queries, text = hidden[:, :num_queries], hidden[:, num_queries:]
        if self.cross is not None:
            queries = self.cross(queries, image)
        mixed: Tensor = self.query_mlp(queries)
        if self.text_mlp is None:
            return mixed
        return torch.cat((mixed, self.text_mlp(text)), dim=1)


class QFormer(nn.Module):
    """A fixed number of learned queries that read an image of any length (li2023blip2, section 3.1)."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.queries = nn.Parameter(0.02 * torch.randn(config.num_queries, D))
        if config.vocab_size:
            self.embedding = nn.Embedding(config.vocab_size, D)
            self.positions = nn.Embedding(config.max_seq_len, D)
        self.norm = nn.LayerNorm(D, eps=1e-12)
        self.layers = nn.ModuleList(
            QFormerBlock(config, sees_image=i % config.cross_attention_every == 0)
            for i in range(config.num_layers)
        )

    def forward(
        self, image: Float[Tensor, "B S W"], text: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """The M queries after all blocks; with a text they also see the instruction."""
        hidden = self.queries.expand(len(image), -1, -1)  # B M D
        if text is not None:
            words = self.embedding(text) + self.positions.weight[: text.shape[1]]
            hidden = torch.cat((hidden, words), dim=1)  # B M+T D
        hidden = self.norm(hidden)
        for layer in self.layers:
            hidden = layer(hidden, image, num_queries=len(self.queries))
        read: Tensor = hidden[:, : len(self.queries)]
        return read
