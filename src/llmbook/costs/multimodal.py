"""Parameters and tokens of what stands before a decoder that sees: image encoder, Q-Former, projector.

Page: foundations/multimodal. Papers: radford2021learning (the encoder), li2023blip2 (the Q-Former),
liu2023visual (the projector).
Left out: FLOPs, convolutional encoders, and encoders of other modalities.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision transformer: square patches, a class token, learned positions, D, L and F as in a decoder.

    Raises:
        ValueError: if the patches do not tile the image.

    >>> VisionConfig(image_size=224, patch_size=14, hidden_size=1024, num_layers=24,
    ...     intermediate_size=4096).num_patches
    256
    """

    image_size: int
    patch_size: int
    hidden_size: int
    num_layers: int
    intermediate_size: int
    output_dim: int = 0  # of a matrix behind the class token, CLIP's way into the shared space
    patch_bias: bool = False
    first_norm: bool = True  # CLIP normalises before the first block
    final_norm: bool = True
    key_bias: bool = True  # EVA has biases on queries and values alone

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )

    @property
    def num_patches(self) -> int:
        """Patches of one image, without the class token."""
        return (self.image_size // self.patch_size) ** 2


def vision_parameters(config: VisionConfig) -> int:
    """Every parameter of a vision transformer: tables and patches, L blocks, norms, output matrix.

    >>> clip = VisionConfig(image_size=224, patch_size=14, hidden_size=1024, num_layers=24,
    ...     intermediate_size=4096)
    >>> vision_parameters(clip)
    303179776
    """
    D = config.hidden_size
    embeddings = 3 * config.patch_size**2 * D + config.patch_bias * D  # three colours
    embeddings += D + (config.num_patches + 1) * D  # class token, positions
    norms = 2 * D * (config.first_norm + config.final_norm)
    return embeddings + config.num_layers * block_parameters(config) + norms + D * config.output_dim


def block_parameters(config: VisionConfig) -> int:
    """Parameters of one block: four D x D, two D x F, their biases, two norms."""
    D, F = config.hidden_size, config.intermediate_size
    attention = 4 * (D * D + D) - (not config.key_bias) * D
    return attention + (D * F + F) + (F * D + D) + 2 * 2 * D


@dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """A querying transformer (li2023blip2, section 3.1): BERT-base with cross-attention every other block.

    `image_size` is the width of the image features. A `vocab_size` of 0 leaves the text out: no
    tables, and no feed-forward layers for text tokens.
    """

    image_size: int
    num_queries: int = 32
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    cross_attention_every: int = 2
    vocab_size: int = 0
    max_seq_len: int = 512


def qformer_parameters(config: QFormerConfig) -> int:
    """Every parameter of the Q-Former, its queries among them.

    >>> qformer_parameters(QFormerConfig(image_size=1408))
    105162240
    """
    D, F, L, W = config.hidden_size, config.intermediate_size, config.num_layers, config.image_size
    norm = 2 * D
    self_attention = 4 * (D * D + D) + norm
    cross_attention = 2 * (D * D + D) + 2 * (W * D + D) + norm
    feed_forward = (D * F + F) + (F * D + D) + norm
    num_cross = len(range(0, L, config.cross_attention_every))
    text = config.vocab_size and (config.vocab_size + config.max_seq_len) * D + L * feed_forward
    queries = config.num_queries * D
    return queries + norm + L * (self_attention + feed_forward) + num_cross * cross_attention + text


def linear_parameters(inputs: int, outputs: int) -> int:
    """A matrix and a bias.

    >>> linear_parameters(1024, 4096)  # LLaVA-7B's projector
    4198400
    """
    return inputs * outputs + outputs
