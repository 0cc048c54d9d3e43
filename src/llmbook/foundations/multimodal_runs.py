"""A toy world of nine cells, the recipes that teach a decoder to see it, and their stored results.

Page: foundations/multimodal.
A scene is nine cells, four of which hold one of six shapes, all different. The same scene is told
in nine words, or drawn in nine patches: the shape's pattern of light and dark in a random colour,
with noise. Questions come after it: a shape asks for its cell, a cell for its shape or `EMPTY`.

    python -m llmbook.foundations.multimodal_runs        # makes multimodal_runs.json anew
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.language_modelling import adamw, fit, warmup_cosine
from llmbook.foundations.multimodal import (
    Encoder,
    VisionLanguageModel,
    contrastive_loss,
    train_only,
)
from llmbook.foundations.weights import processor

FILE = Path(__file__).parent / "multimodal_runs.json"
NUM_SHAPES, NUM_CELLS, NUM_FILLED = 6, 9, 4
EMPTY = 0  # the word for an empty cell; 1 to 6 are shapes, 7 to 15 are cells
PATCH_DIM = 3 * 4 * 4  # three colours of 4 x 4 pixels

DECODER = ModelConfig(
    vocab_size=1 + NUM_SHAPES + NUM_CELLS, hidden_size=32, num_layers=2, num_heads=4,
    max_seq_len=24, tie_embeddings=False,
)  # fmt: skip
ENCODER = DECODER.but(vocab_size=1, max_seq_len=NUM_CELLS)


def scenes(
    num_scenes: int, *, generator: torch.Generator
) -> tuple[Int[Tensor, "n cells"], Int[Tensor, "n 10"]]:
    """The nine words of each scene, and five questions about it, each followed by its answer."""
    places = torch.rand(num_scenes, NUM_CELLS, generator=generator).argsort(1)
    shapes = 1 + torch.rand(num_scenes, NUM_SHAPES, generator=generator).argsort(1)[:, :NUM_FILLED]
    words = torch.zeros(num_scenes, NUM_CELLS, dtype=torch.long)
    words = words.scatter(1, places[:, :NUM_FILLED], shapes)
    cells = 1 + NUM_SHAPES + places
    nothing = torch.full((num_scenes, 1), EMPTY)
    asked = torch.cat((shapes[:, :2], cells[:, 2:5]), dim=1)  # where twice, what thrice
    answers = torch.cat((cells[:, :2], shapes[:, 2:], nothing), dim=1)
    order = torch.rand(num_scenes, 5, generator=generator).argsort(1)
    return words, torch.stack((asked.gather(1, order), answers.gather(1, order)), -1).flatten(1)


def drawn(
    words: Int[Tensor, "n cells"], *, generator: torch.Generator, noise: float = 0.5
) -> Float[Tensor, "n cells p"]:
    """Patches of the scenes: light and dark of a shape's pattern times a random colour, plus noise.

    The colour may be the negative of another, so that no sum of pixels tells two shapes apart.
    """
    luck = torch.Generator().manual_seed(7)  # the six patterns, the same in every run
    half = torch.tensor([1.0] * 8 + [-1.0] * 8)
    patterns = torch.stack([half[torch.randperm(16, generator=luck)] for _ in range(NUM_SHAPES)])
    patterns = torch.cat((torch.zeros(1, 16), patterns))  # an empty cell is flat
    colours = nn.functional.normalize(torch.randn(*words.shape, 3, generator=generator), dim=-1)
    pixels = 3**0.5 * colours[..., None] * patterns[words][:, :, None]  # n cells 3 16
    return (pixels + noise * torch.randn(pixels.shape, generator=generator)).flatten(2)


def answers_loss(logits: Float[Tensor, "n 10 V"], dialogue: Int[Tensor, "n 10"]) -> Tensor:
    """Cross-entropy of the five answers, each predicted from the question before it."""
    return nn.functional.cross_entropy(logits[:, ::2].flatten(0, 1), dialogue[:, 1::2].flatten())


def stream(
    batch_size: int, *, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Fresh scenes without end: words, patches, questions with answers."""
    while True:
        words, dialogue = scenes(batch_size, generator=generator)
        yield words, drawn(words, generator=generator), dialogue


def after_words(model: nn.Module, words: Tensor, dialogue: Tensor) -> Float[Tensor, "n 10 V"]:
    """Logits of a decoder that is told the scene in words."""
    logits: Tensor = model(torch.cat((words, dialogue), dim=1))
    return logits[:, words.shape[1] :]


@torch.no_grad()
def accuracy(
    logits: Callable[[Tensor, Tensor, Tensor], Tensor], *, num_scenes: int = 1000
) -> float:
    """Share of right answers about fresh scenes, from words, patches and dialogue."""
    held_out = torch.Generator().manual_seed(99)
    words, patches, dialogue = next(stream(num_scenes, generator=held_out))
    chosen = logits(words, patches, dialogue)[:, ::2].argmax(-1)
    return (chosen == dialogue[:, 1::2]).double().mean().item()


def reading_decoder(seed: int, *, num_steps: int = 300) -> Decoder:
    """A decoder that answers questions about scenes told in words; it has never seen a picture."""
    luck = torch.Generator().manual_seed(seed)
    decoder = initialise(Decoder(DECODER), generator=luck, std=0.2)
    fit(
        decoder, stream(64, generator=luck), optimizer=adamw(decoder, weight_decay=0.01),
        schedule=warmup_cosine(1e-2, num_steps=num_steps, num_warmup_steps=20),
        loss=lambda model, batch: answers_loss(after_words(model, batch[0], batch[2]), batch[2]),
    )  # fmt: skip
    return decoder


class Towers(nn.Module):
    """An image and a text, each made one vector, as CLIP compares them."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.words = encoder, nn.Embedding(1 + NUM_SHAPES, 16)
        self.image_out = nn.Linear(NUM_CELLS * ENCODER.hidden_size, 32)
        self.text_out = nn.Linear(NUM_CELLS * 16, 32)

    def loss(self, words: Tensor, patches: Tensor) -> Tensor:
        """The contrastive loss of a batch of scenes."""
        image = self.image_out(self.encoder(patches).flatten(1))
        text = self.text_out(self.words(words).flatten(1))
        return contrastive_loss(image, text, temperature=0.1)


def seeing_encoder(seed: int, *, num_steps: int = 250) -> Encoder:
    """An encoder trained as CLIP's: which of 128 texts belongs to which of 128 pictures?"""
    torch.manual_seed(seed)
    towers = Towers(Encoder(ENCODER, patch_dim=PATCH_DIM))
    fit(
        towers, stream(128, generator=torch.Generator().manual_seed(seed)),
        optimizer=adamw(towers, weight_decay=0.01),
        schedule=warmup_cosine(5e-3, num_steps=num_steps, num_warmup_steps=20),
        loss=lambda _towers, batch: towers.loss(batch[0], batch[1]),
    )  # fmt: skip
    return towers.encoder


def joined(
    encoder: nn.Module, decoder: Decoder, *, seed: int, scale: float = 0.1
) -> VisionLanguageModel:
    """Copies of both parts and a new projector, whose weights are PyTorch's times `scale`."""
    torch.manual_seed(seed)
    width = PATCH_DIM if isinstance(encoder, nn.Identity) else ENCODER.hidden_size
    projector = nn.Linear(width, DECODER.hidden_size)
    with torch.no_grad():
        projector.weight.mul_(scale)
        projector.bias.zero_()
    return VisionLanguageModel(copy.deepcopy(encoder), projector, copy.deepcopy(decoder))


def teach_to_see(model: VisionLanguageModel, *, seed: int, num_steps: int = 150) -> list[float]:
    """Train what is not frozen on questions about pictures; return the losses."""
    return fit(
        model, stream(64, generator=torch.Generator().manual_seed(1000 + seed)),
        optimizer=adamw(model, weight_decay=0.0),
        schedule=warmup_cosine(3e-3, num_steps=num_steps, num_warmup_steps=10),
        loss=lambda model, batch: answers_loss(model(batch[1], batch[2]), batch[2]),
    )  # fmt: skip


def seen_and_read(model: VisionLanguageModel) -> tuple[float, float]:
    """Accuracy on pictures, and that of its decoder on words."""
    return (
        accuracy(lambda _words, patches, dialogue: model(patches, dialogue)),
        accuracy(lambda words, _patches, dialogue: after_words(model.decoder, words, dialogue)),
    )


def compared(seed: int, *, num_steps: int = 150) -> dict[str, dict[str, float]]:
    """What each way of freezing reaches from the same pretrained parts."""
    encoder, decoder = seeing_encoder(seed), reading_decoder(seed)
    torch.manual_seed(seed)
    blind = Encoder(ENCODER, patch_dim=PATCH_DIM)  # never trained
    unread = initialise(Decoder(DECODER), generator=torch.Generator().manual_seed(seed), std=0.2)
    ways: dict[str, tuple[nn.Module, Decoder, float, tuple[str, ...]]] = {
        "projector": (encoder, decoder, 0.1, ("connector",)),
        "projector and decoder": (encoder, decoder, 0.1, ("connector", "decoder")),
        "everything": (encoder, decoder, 0.1, ("encoder", "connector", "decoder")),
        "projector, long start": (encoder, decoder, 1.0, ("connector",)),
        "projector, random encoder": (blind, decoder, 0.1, ("connector",)),
        "projector, no encoder": (nn.Identity(), decoder, 0.1, ("connector",)),
        "projector, random decoder": (encoder, unread, 0.1, ("connector",)),
    }
    found: dict[str, dict[str, float]] = {}
    for way, (eyes, mouth, scale, parts) in ways.items():
        model = joined(eyes, mouth, seed=seed, scale=scale)
        trained = train_only(model, *(getattr(model, part) for part in parts))
        teach_to_see(model, seed=seed, num_steps=num_steps)
        seen, read = seen_and_read(model)
        found[way] = {"trained": trained, "pictures": seen, "words": read}
    return found


KINDS = ("image", "text", "sound")
BOUND = (("image", "text"), ("image", "sound"))  # the second stage trains sound alone


def text_finds_sound(
    seed: int, pairs: Sequence[tuple[str, str]], *, visible: int = 8, num_steps: int = 200
) -> float:
    """How often a text's nearest sound among 200 is its own, after training on `pairs` in turn.

    Eight numbers z lie behind everything; each kind is tanh(z A) with noise, with an A of its own,
    and that of images sees the first `visible` of them alone. The first pair trains both encoders;
    a later pair trains its second and leaves its first frozen (girdhar2023imagebind, section 4).
    """
    luck = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    mixing = {kind: 0.6 * torch.randn(8, 32, generator=luck) for kind in KINDS}
    mixing["image"][visible:] = 0
    net = {kind: nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16)) for kind in KINDS}

    def embedded(*kinds: str, num_rows: int) -> list[Tensor]:
        z = torch.randn(num_rows, 8, generator=luck)
        noise = {kind: 0.3 * torch.randn(num_rows, 32, generator=luck) for kind in kinds}
        return [net[kind](torch.tanh(z @ mixing[kind]) + noise[kind]) for kind in kinds]

    for pair in pairs:
        learn = nn.ModuleList(net[kind] for kind in (pair if pair == pairs[0] else pair[1:]))
        adam = torch.optim.AdamW(learn.parameters(), lr=3e-3)
        for _ in range(num_steps):
            adam.zero_grad()
            one, other = embedded(*pair, num_rows=128)
            contrastive_loss(one, other, temperature=0.1).backward()
            adam.step()
    text, sound = (
        nn.functional.normalize(x, dim=-1) for x in embedded("text", "sound", num_rows=200)
    )
    return ((text @ sound.T).argmax(1) == torch.arange(200)).double().mean().item()


def sounds_found(seed: int) -> dict[str, float]:
    """`text_finds_sound` bound by images that show 8, 4 or 2 causes, directly, and left unbound."""
    shares = {
        f"bound, {visible} shown": text_finds_sound(seed, BOUND, visible=visible)
        for visible in (8, 4, 2)
    }
    shares["direct"] = text_finds_sound(seed, (("text", "sound"),))
    shares["unbound"] = text_finds_sound(seed, BOUND[:1])
    return shares


def stored() -> dict[str, Any]:
    """The results of `compared` and `sounds_found` for several seeds, with the command that made them.

    >>> stored()["command"]
    'python -m llmbook.foundations.multimodal_runs'
    """
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf8"))
    return found


def main(num_seeds: int = 4) -> None:
    """Run all seeds, writing the file anew after each."""
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for seed in range(num_seeds):
        runs.append({"seed": seed, "sounds": sounds_found(seed), "ways": compared(seed)})
        record = {
            "command": "python -m llmbook.foundations.multimodal_runs",
            "date": date.today().isoformat(),
            "processor": processor(),
            "torch": torch.__version__.partition("+")[0],
            "cpu_seconds": round(time.process_time()),
            "runs": runs,
        }
        FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
