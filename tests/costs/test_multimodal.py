"""Counts against the classes of transformers on the meta device, and against printed numbers."""

import random
from pathlib import Path

import pytest
import torch
from formula import expressions
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

from llmbook.costs.multimodal import (
    QFormerConfig,
    VisionConfig,
    block_parameters,
    linear_parameters,
    qformer_parameters,
    vision_parameters,
)
from llmbook.published import numbers

PAGE = Path(__file__).parents[2] / "book/foundations/multimodal.md"
LARGE = {"hidden_size": 1024, "num_layers": 24, "intermediate_size": 4096, "patch_size": 14}
HUGE = {"hidden_size": 1280, "num_layers": 32, "intermediate_size": 5120, "patch_size": 14}


def held(model, config):
    with torch.device("meta"):
        return sum(weight.numel() for weight in model(config).parameters())


def clip(sizes, image_size, **more):
    sizes = {**sizes, "num_hidden_layers": sizes["num_layers"], "image_size": image_size, **more}
    del sizes["num_layers"]
    return CLIPVisionConfig(num_attention_heads=16, **sizes)


@pytest.mark.parametrize("image_size", [224, 336])
def test_the_tower_of_clip(image_size):
    ours = vision_parameters(VisionConfig(image_size=image_size, **LARGE))
    assert ours == held(CLIPVisionModel, clip(LARGE, image_size))


def test_a_tower_with_its_output_matrix():
    ours = vision_parameters(VisionConfig(image_size=224, output_dim=1024, **HUGE))
    theirs = held(CLIPVisionModelWithProjection, clip(HUGE, 224, projection_dim=1024))
    assert ours == theirs


def test_eva_as_transformers_and_as_its_makers_hold_it():
    """transformers keeps a bias on keys, which EVA's code does not have: 39 x 1,408 zeros."""
    sizes = {"hidden_size": 1408, "num_layers": 39, "intermediate_size": 6144, "patch_size": 14}
    eva = VisionConfig(image_size=224, patch_bias=True, first_norm=False, **sizes)
    assert vision_parameters(eva) == held(Blip2VisionModel, Blip2VisionConfig())
    own = VisionConfig(image_size=224, patch_bias=True, first_norm=False, key_bias=False, **sizes)
    assert vision_parameters(eva) - vision_parameters(own) == 39 * 1408


def test_patches_and_uneven_images():
    assert VisionConfig(image_size=224, **LARGE).num_patches == 256
    assert VisionConfig(image_size=336, **LARGE).num_patches == 576
    with pytest.raises(ValueError, match="image_size 225 is not a multiple of patch_size 14"):
        VisionConfig(image_size=225, **LARGE)


@pytest.mark.parametrize("width", [1024, 1408])
def test_the_q_former_without_and_with_text(width):
    queries = 32 * 768
    ours = qformer_parameters(QFormerConfig(image_size=width)) - queries
    assert ours == held(Blip2QFormerModel, Blip2QFormerConfig(encoder_hidden_size=width))
    ours = qformer_parameters(QFormerConfig(image_size=width, vocab_size=30_522)) - queries
    theirs = InstructBlipQFormerConfig(encoder_hidden_size=width)
    assert ours == held(InstructBlipQFormerModel, theirs)


def test_a_q_former_of_other_sizes():
    """Uneven depth, cross-attention every third block, other width, vocabulary and positions."""
    ours = QFormerConfig(
        image_size=10, num_queries=5, hidden_size=24, num_layers=7, num_heads=3,
        intermediate_size=20, cross_attention_every=3, vocab_size=17, max_seq_len=9,
    )  # fmt: skip
    theirs = InstructBlipQFormerConfig(
        encoder_hidden_size=10, hidden_size=24, num_hidden_layers=7, num_attention_heads=3,
        intermediate_size=20, cross_attention_frequency=3, vocab_size=17, max_position_embeddings=9,
    )  # fmt: skip
    assert qformer_parameters(ours) - 5 * 24 == held(InstructBlipQFormerModel, theirs)


@pytest.mark.parametrize(
    ("width", "language", "printed"),
    [(1024, 2560, 104), (1408, 2560, 107), (1408, 4096, 108), (1024, 2048, 103), (1408, 2048, 107)],
)
def test_table_2_of_blip_2(width, language, printed):
    """li2023blip2, Table 2: the Q-Former without text, and a projection to the language model."""
    trained = qformer_parameters(QFormerConfig(image_size=width)) + linear_parameters(768, language)
    assert round(trained / 1e6) == printed


def test_a_linear_layer_and_a_block_are_torch_s():
    layer = torch.nn.Linear(768, 4096, device="meta")
    assert linear_parameters(768, 4096) == sum(weight.numel() for weight in layer.parameters())
    block = torch.nn.TransformerEncoderLayer(1280, 16, 5120, device="meta")
    assert block_parameters(VisionConfig(image_size=224, **HUGE)) == sum(
        weight.numel() for weight in block.parameters()
    )


def test_the_misprint_of_the_q_former_says_what_we_count():
    with_text = qformer_parameters(QFormerConfig(image_size=1408, vocab_size=30_523))
    projected = with_text + linear_parameters(768, 2560)
    for count in (with_text, projected):
        assert f"{count / 1e6:.1f} M" in numbers()["multimodal.blip2.qformer"].misprint


@pytest.mark.parametrize("seed", range(5))
def test_the_formula_of_the_page(seed):
    draw = random.Random(seed)
    p, D, F, L, across = (draw.randrange(1, 40) for _ in range(5))
    config = VisionConfig(
        image_size=p * across, patch_size=p, hidden_size=D, num_layers=L, intermediate_size=F
    )
    letters = {"p": p, "n": across**2, "D": D, "F": F, "L": L}
    assert vision_parameters(config) == eval(expressions(PAGE)["eq-vision-parameters"], letters)
