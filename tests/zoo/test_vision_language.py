"""Systems: counts against printed ones, stages against what the papers say, errors."""

from datetime import date

import pytest
import torch
from torch import nn

from llmbook.bibliography import entries
from llmbook.costs.parameters import parameter_count
from llmbook.zoo.catalogue import config
from llmbook.zoo.vision_language import size, system, systems


def test_every_source_can_be_cited():
    for found in systems().values():
        assert found.source in entries()
        assert found.organisation
        assert found.released.year == 2023
        for part in found.parts:
            assert part.source in entries()
            assert part.where
        for stage in found.stages:
            assert stage.data
            assert stage.where


def test_the_image_encoder_and_most_decoders_are_frozen_in_every_stage():
    """What each paper says: only LLaVA's second stage trains a language model."""
    for found in systems().values():
        assert found.parts[0].role == "encoder"
        assert found.parts[0].name in found.frozen
        decoders = {part.name for part in found.parts if part.role == "decoder"}
        assert decoders <= set(found.frozen) or found.name == "llava-7b"


def test_stages_count_what_the_papers_say():
    known = systems()
    assert known["minigpt-4-7b"].trained(0) == 768 * 4096 + 4096  # one linear layer
    assert known["minigpt-4-7b"].trained(1) == known["minigpt-4-7b"].trained(0)
    assert known["llava-7b"].trained(0) == 1024 * 4096 + 4096
    decoder = parameter_count(config("llama-7b")).total
    assert known["llava-7b"].trained(1) == decoder + known["llava-7b"].trained(0)
    assert known["vl-vicuna-7b"].trained(0) == known["minigpt-4-7b"].trained(0)


def test_what_the_released_code_leaves_unfrozen():
    """Every part but encoder and decoder, where a stage of BLIP-2's heirs trains its connector."""
    for name, stages, frozen in (
        ("vl-vicuna-7b", (1, 2), ()), ("instructblip-7b", (0,), ()),
        ("videochat-7b", (0, 1), ("Q-Former",)),
    ):  # fmt: skip
        found = systems()[name]
        connector = {part.name for part in found.parts if part.role == "connector"}
        for i in stages:
            assert set(found.stages[i].trained) == connector - set(frozen)


def test_imagebind_s_frozen_encoders_are_as_printed():
    """girdhar2023imagebind, section 4: ViT-H of 630M and a text encoder of 302M, both frozen."""
    image, text = systems()["imagebind-huge"].parts[:2]
    assert systems()["imagebind-huge"].frozen == (image.name, text.name)
    assert round(image.parameters / 1e6) == 630
    assert round(text.parameters / 1e6) == 302


def test_videochat_s_temporal_modules_are_eight_blocks_of_uniformer():
    with torch.device("meta"):
        D, F = 1408, round(4.3637 * 1408)
        block = nn.ModuleList(
            [
                nn.Conv3d(D, D, kernel_size=3, groups=D),
                nn.MultiheadAttention(D, 16),
                nn.Linear(D, F),
                nn.Linear(F, D),
                *(nn.LayerNorm(D) for _ in range(3)),
            ]
        )
    one = sum(weight.numel() for weight in block.parameters())
    modules = {part.name: part for part in systems()["videochat-7b"].parts}
    assert modules["temporal modules"].parameters == 8 * one + D


@pytest.mark.parametrize(
    "name", ["llava-7b", "minigpt-4-7b", "instructblip-7b", "videochat-7b", "vl-vicuna-7b"]
)
def test_image_tokens_are_patches_or_queries(name):
    found = systems()[name]
    patches_or_queries = {"llava-7b": (224 // 14) ** 2, "videochat-7b": 32 + 64}
    assert found.image_tokens == patches_or_queries.get(name, 32)


def wrong(**changes):
    part = {"name": "eye", "role": "encoder", "linear": [2, 3], "source": "x", "where": "y"}
    stage = {"name": "one", "trained": ["eye"], "data": "d", "where": "w"}
    fields = {"name": "s", "organisation": "o", "released": date(2023, 1, 1), "source": "x"}
    return {**fields, "part": [{**part, **changes.get("part", {})}] * changes.get("copies", 1),
            "stage": [{**stage, **changes.get("stage", {})}]}  # fmt: skip


def test_contradictions_are_refused():
    assert system(wrong()).parameters == 9
    with pytest.raises(ValueError, match="trains 'ear', which is none of eye"):
        system(wrong(stage={"trained": ["ear"]}))
    with pytest.raises(ValueError, match="role 'nose' is none of encoder, connector, decoder"):
        system(wrong(part={"role": "nose"}))
    with pytest.raises(ValueError, match="s has two parts called 'eye'"):
        system(wrong(copies=2))
    with pytest.raises(ValueError, match="has 2 of decoder, linear"):
        size({"linear": [1, 1], "counted": 3})
    with pytest.raises(ValueError, match="has 0 of"):
        size({"name": "nothing"})
