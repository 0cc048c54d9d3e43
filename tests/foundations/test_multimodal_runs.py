"""The toy world keeps its rules, and a first part of the stored runs comes out again."""

import statistics

import torch
from torch import nn

from llmbook.foundations.decoder import Decoder
from llmbook.foundations.multimodal import train_only
from llmbook.foundations.multimodal_runs import (
    BOUND,
    DECODER,
    EMPTY,
    NUM_CELLS,
    NUM_FILLED,
    NUM_SHAPES,
    PATCH_DIM,
    accuracy,
    after_words,
    drawn,
    joined,
    reading_decoder,
    scenes,
    seeing_encoder,
    stored,
    teach_to_see,
    text_finds_sound,
)


def luck(seed=0):
    return torch.Generator().manual_seed(seed)


def test_answers_are_true_of_the_scene():
    words, dialogue = scenes(200, generator=luck())
    assert (words.bool().sum(1) == NUM_FILLED).all()
    for scene, row in zip(words.tolist(), dialogue.view(200, 5, 2).tolist(), strict=True):
        assert len({asked for asked, _ in row}) == 5
        assert sum(asked <= NUM_SHAPES for asked, _ in row) == 2
        for asked, answer in row:
            if asked <= NUM_SHAPES:  # where is the shape?
                assert scene[answer - 1 - NUM_SHAPES] == asked
            else:  # what is in the cell?
                assert scene[asked - 1 - NUM_SHAPES] == answer


def test_no_sum_of_pixels_tells_shapes_apart():
    """The mean picture of every shape is nothing, since a colour is as likely as its negative."""
    words, _ = scenes(4000, generator=luck())
    pictures = drawn(words, generator=luck(1))
    assert pictures.shape == (4000, NUM_CELLS, PATCH_DIM)
    for shape in range(NUM_SHAPES + 1):
        mean = pictures[words == shape].mean(0)
        assert mean.abs().max() < 0.15
    spread = pictures[words == EMPTY].std()
    assert abs(spread - 0.5) < 0.02  # noise alone


def test_guessing_is_worth_what_it_is_worth():
    def blind(words, _patches, dialogue):
        return torch.zeros(*dialogue.shape, 16)  # the first word, always: nothing there

    assert abs(accuracy(blind) - 0.2) < 1e-9


def test_a_projector_on_pixels_is_as_wide_as_a_patch_and_starts_short():
    decoder = Decoder(DECODER)
    long, short = (joined(nn.Identity(), decoder, seed=3, scale=scale) for scale in (1.0, 0.1))
    assert short.connector.in_features == PATCH_DIM
    assert train_only(short, short.connector) == PATCH_DIM * 32 + 32
    torch.testing.assert_close(long.connector.weight, 10 * short.connector.weight)
    assert short.decoder is not decoder  # a copy: another way starts from the same parts


def test_a_few_steps_of_each_recipe_lower_its_loss():
    decoder, encoder = reading_decoder(3, num_steps=30), seeing_encoder(3, num_steps=3)
    told = accuracy(lambda words, _patches, dialogue: after_words(decoder, words, dialogue))
    assert told > 0.25  # a fifth is had by answering "nothing"
    model = joined(encoder, decoder, seed=3)
    train_only(model, model.connector)
    losses = teach_to_see(model, seed=3, num_steps=20)
    assert sum(losses[-5:]) < sum(losses[:5])
    again = joined(encoder, decoder, seed=3)
    train_only(again, again.connector)
    assert teach_to_see(again, seed=3, num_steps=20) == losses  # the seed fixes everything


def test_what_never_met_is_bound_by_a_third_on_another_seed_than_the_page_s():
    bound = text_finds_sound(17, BOUND, num_steps=120)
    apart = text_finds_sound(17, BOUND[:1], num_steps=120)
    blind = text_finds_sound(17, BOUND, visible=2, num_steps=120)
    assert bound > 0.6
    assert apart < 0.05  # one in 200 by chance
    assert blind < bound / 2


def test_the_stored_shares_come_out_again():
    """The first seed's; another processor may differ by some of the 200 texts."""
    kept = stored()["runs"][0]["sounds"]
    assert abs(text_finds_sound(0, BOUND, visible=4) - kept["bound, 4 shown"]) < 0.1
    assert abs(text_finds_sound(0, BOUND[:1]) - kept["unbound"]) < 0.1
    assert set(kept) == {
        "bound, 8 shown", "bound, 4 shown", "bound, 2 shown", "direct", "unbound"
    }  # fmt: skip


def test_training_on_text_and_sound_does_not_look_at_images():
    direct = (("text", "sound"),)
    shares = [text_finds_sound(5, direct, visible=n, num_steps=20) for n in (8, 2)]
    assert shares[0] == shares[1] > 0.05


def test_a_later_pair_leaves_its_first_encoder_frozen(monkeypatch):
    """girdhar2023imagebind, section 4: the image encoder is trained before, and not again."""
    taught = []

    def remember(parameters, **options):
        taught.append(list(parameters))
        return adam(taught[-1], **options)

    adam = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", remember)
    text_finds_sound(0, BOUND, num_steps=1)
    sizes = [sum(weight.numel() for weight in weights) for weights in taught]
    one_encoder = 32 * 64 + 64 + 64 * 16 + 16
    assert sizes == [2 * one_encoder, one_encoder]
    assert not {id(weight) for weight in taught[0]} & {id(weight) for weight in taught[1]}


def test_the_stored_runs_say_what_the_page_says():
    runs = stored()["runs"]
    assert [run["seed"] for run in runs] == list(range(len(runs)))
    assert len(runs) >= 3

    def median(way, what="pictures"):
        return statistics.median(run["ways"][way][what] for run in runs)

    for run in runs:
        sounds = run["sounds"]
        assert sounds["direct"] > sounds["bound, 8 shown"] - 0.05  # nearly as often
        assert sounds["bound, 8 shown"] > 2 * sounds["bound, 4 shown"]
        assert sounds["bound, 4 shown"] > 2 * sounds["bound, 2 shown"] > 4 * sounds["unbound"]
    for run in runs:  # a frozen decoder reads as before
        ways = run["ways"]
        assert ways["projector"]["words"] == ways["projector, no encoder"]["words"]
        assert ways["projector"]["pictures"] > ways["projector, long start"]["pictures"]
    assert median("projector") > 0.8
    assert median("projector and decoder") > median("projector")
    assert min(run["ways"]["projector and decoder"]["words"] for run in runs) > 0.9
    assert median("projector") > 2 * median("projector, random encoder")
