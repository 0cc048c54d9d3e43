"""Patches, losses and Q-Former against torch, transformers and the sums written out."""

import math

import pytest
import torch
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

from llmbook.config import ModelConfig
from llmbook.costs.multimodal import QFormerConfig, qformer_parameters
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.language_modelling import adamw, fit
from llmbook.foundations.multimodal import (
    Encoder,
    QFormer,
    VisionLanguageModel,
    contrastive_loss,
    info_nce,
    logits_after,
    patches,
    train_only,
)


def luck(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_linear_map_of_patches_is_a_convolution_with_that_stride():
    """How every production encoder embeds patches (radford2021learning, released code)."""
    images = torch.randn(2, 3, 28, 42, generator=luck())
    convolution = nn.Conv2d(3, 5, kernel_size=14, stride=14)
    theirs = convolution(images).flatten(2).transpose(1, 2)  # B T 5
    ours = patches(images, size=14) @ convolution.weight.flatten(1).T + convolution.bias
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="images of 28 x 30 pixels are not tiled by patches of"):
        patches(torch.zeros(1, 3, 28, 30), size=14)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_the_loss_is_cross_entropy_both_ways_and_so_is_its_gradient(temperature):
    """The pseudocode of radford2021learning, figure 3."""
    rows = [torch.randn(6, 5, generator=luck(i), dtype=torch.float64) for i in (0, 1)]
    ours, theirs = ([x.clone().requires_grad_() for x in rows] for _ in range(2))
    loss = contrastive_loss(*ours, temperature=temperature)
    unit = [x / x.norm(dim=1, keepdim=True) for x in theirs]
    logits, labels = unit[0] @ unit[1].T / temperature, torch.arange(6)
    cross_entropy = nn.functional.cross_entropy
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss, expected, atol=1e-14, rtol=0)
    loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-13, rtol=0)


def test_the_gradient_of_the_scores_is_two_softmaxes_less_the_diagonal():
    scores = torch.randn(5, 5, generator=luck(), dtype=torch.float64, requires_grad=True)
    info_nce(scores).backward()
    both = scores.detach().softmax(1) + scores.detach().softmax(0)
    expected = (both / 2 - torch.eye(5)) / 5
    torch.testing.assert_close(scores.grad, expected, atol=1e-15, rtol=0)


def test_the_loss_does_not_know_the_order_of_pairs_or_sides():
    one, other = (torch.randn(7, 4, generator=luck(i), dtype=torch.float64) for i in (2, 3))
    order = torch.randperm(7, generator=luck())
    loss = contrastive_loss(one, other, temperature=0.5)
    torch.testing.assert_close(loss, contrastive_loss(other, one, temperature=0.5))
    torch.testing.assert_close(loss, contrastive_loss(one[order], other[order], temperature=0.5))
    torch.testing.assert_close(loss, contrastive_loss(3 * one, other / 9, temperature=0.5))


def test_ln_of_n_less_the_loss_stays_below_what_the_two_sides_share():
    """vandenoord2018representation, section 2.3, on Gaussians whose information is known."""
    dims, correlation, generator = 12, 0.8, luck()
    known = -dims / 2 * math.log(1 - correlation**2)
    for rows in (8, 512):
        x = torch.randn(rows, dims, generator=generator, dtype=torch.float64)
        noise = torch.randn(rows, dims, generator=generator, dtype=torch.float64)
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        spread = 1 - correlation**2
        scores = -((y[None] - correlation * x[:, None]) ** 2).sum(-1) / (2 * spread)
        scores = scores + (y**2).sum(-1)[None] / 2  # ln p(y given x) / p(y), but for a constant
        bound = math.log(rows) - info_nce(scores).item()
        assert bound < min(math.log(rows), known)
        assert bound > 0.75 * min(math.log(rows), known)


def test_scores_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"scores of shape \(3, 4\) are not square"):
        info_nce(torch.zeros(3, 4))


CONFIG = ModelConfig(
    vocab_size=11, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=12, tie_embeddings=False
)


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
@pytest.mark.parametrize("tied", [True, False])
def test_vectors_of_words_stand_for_the_words(positions, tied):
    """The decoder cannot tell embeddings handed in from tokens looked up."""
    config = CONFIG.but(positions=positions, tie_embeddings=tied)
    decoder = initialise(Decoder(config), generator=luck(), std=0.2)
    tokens = torch.randint(11, (3, 9), generator=luck(1))
    vectors = decoder.embedding(tokens[:, :5])
    expected = decoder(tokens)[:, 5:]
    torch.testing.assert_close(logits_after(decoder, vectors, tokens[:, 5:]), expected)
    torch.testing.assert_close(decoder(tokens)[:, 5:], expected)  # no hook is left behind
    shifted = logits_after(decoder, vectors.flip(1), tokens[:, 5:])
    assert not torch.allclose(shifted, expected, atol=1e-3)


def test_no_hook_is_left_when_the_decoder_refuses():
    decoder = Decoder(CONFIG)
    with pytest.raises(ValueError, match="do not fit into max_seq_len"):
        logits_after(decoder, torch.zeros(1, 9, 16), torch.zeros(1, 9, dtype=torch.long))
    assert not decoder.embedding._forward_hooks


def test_every_patch_sees_every_other_and_knows_its_place():
    encoder = Encoder(CONFIG.but(vocab_size=1, max_seq_len=4), patch_dim=6)
    image = torch.randn(1, 4, 6, generator=luck())
    other = image.clone()
    other[0, 3] += 1
    seen = (encoder(other) - encoder(image)).abs().amax(-1)
    assert (seen > 1e-6).all()  # the first patch too
    assert not torch.allclose(encoder(image.flip(1)).flip(1), encoder(image), atol=1e-4)


def test_frozen_parts_do_not_move_and_the_count_is_that_of_the_others():
    encoder = Encoder(CONFIG.but(vocab_size=1, max_seq_len=4), patch_dim=6)
    model = VisionLanguageModel(encoder, nn.Linear(16, 16), Decoder(CONFIG))
    assert train_only(model, model.connector) == 16 * 16 + 16
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    image, tokens = torch.randn(2, 4, 6, generator=luck()), torch.tensor([[1, 2], [3, 4]])
    fit(
        model, [image] * 2, optimizer=adamw(model), schedule=[0.1, 0.1],
        loss=lambda m, x: m(x, tokens).square().mean(),
    )  # fmt: skip
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) != name.startswith("connector"), name
    total = sum(weight.numel() for weight in model.parameters())
    assert train_only(model, model) == total


SMALL = {"image_size": 10, "hidden_size": 24, "num_layers": 5, "num_heads": 3}
THEIRS = {
    "encoder_hidden_size": 10, "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3,
    "intermediate_size": 20,
}  # fmt: skip


def renamed(name):
    """Our name of a weight from that of transformers."""
    for theirs, ours in (
        ("embeddings.word_embeddings", "embedding"), ("embeddings.position_embeddings", "positions"),
        ("embeddings.layernorm", "norm"), ("encoder.layer", "layers"), ("layernorm", "norm"),
        ("crossattention", "cross"), ("attention.attention", "attention"),
        ("cross.attention", "cross"), ("attention.output.dense", "attention.output"),
        ("cross.output.dense", "cross.output"), ("attention.output.LayerNorm", "attention.norm"),
        ("cross.output.LayerNorm", "cross.norm"), ("intermediate_query.dense", "query_mlp.up"),
        ("output_query.dense", "query_mlp.down"), ("output_query.LayerNorm", "query_mlp.norm"),
        ("intermediate.dense", "text_mlp.up"), ("output.dense", "text_mlp.down"),
        ("output.LayerNorm", "text_mlp.norm"),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def with_weights_of(theirs, config):
    """A Q-Former of ours with random weights of theirs."""
    ours = QFormer(config)
    generator = luck(5)
    for name, weight in theirs.named_parameters():
        gain = name.lower().endswith("layernorm.weight")
        weight.data = gain + 0.3 * torch.randn(weight.shape, generator=generator)
    weights = {renamed(name): weight for name, weight in theirs.named_parameters()}
    assert ours.load_state_dict({**weights, "queries": ours.queries.data})
    return ours


@torch.no_grad()
def test_equals_transformers_q_former():
    theirs = Blip2QFormerModel(Blip2QFormerConfig(**THEIRS)).eval()
    ours = with_weights_of(theirs, QFormerConfig(num_queries=4, intermediate_size=20, **SMALL))
    image = torch.randn(2, 7, 10, generator=luck())
    expected = theirs(
        query_embeds=ours.queries.expand(2, -1, -1), encoder_hidden_states=image
    ).last_hidden_state
    assert expected.shape == (2, 4, 24)
    torch.testing.assert_close(ours(image), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_equals_transformers_q_former_that_reads_the_instruction():
    shared = {"vocab_size": 17}
    theirs = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(**THEIRS, **shared, max_position_embeddings=9)
    ).eval()
    config = QFormerConfig(num_queries=4, intermediate_size=20, max_seq_len=9, **SMALL, **shared)
    ours = with_weights_of(theirs, config)
    image, text = torch.randn(2, 7, 10, generator=luck()), torch.tensor([[1, 2, 3], [4, 5, 16]])
    expected = theirs(
        input_ids=text, query_embeds=ours.queries.expand(2, -1, -1), encoder_hidden_states=image,
        attention_mask=torch.ones(2, 7),
    ).last_hidden_state[:, :4]  # fmt: skip
    torch.testing.assert_close(ours(image, text), expected, atol=1e-5, rtol=0)
    other = ours(image, text.flip(1))  # the instruction changes what is read
    assert (other - expected).abs().max() > 1e-3


def test_a_q_former_holds_what_is_counted():
    for vocab_size in (0, 17):
        config = QFormerConfig(num_queries=4, vocab_size=vocab_size, **SMALL)
        held = sum(weight.numel() for weight in QFormer(config).parameters())
        assert held == qformer_parameters(config)


def test_as_many_vectors_come_out_as_there_are_queries():
    former = QFormer(QFormerConfig(num_queries=4, **SMALL))
    assert (
        former(torch.zeros(1, 257, 10)).shape == former(torch.zeros(1, 9, 10)).shape == (1, 4, 24)
    )
