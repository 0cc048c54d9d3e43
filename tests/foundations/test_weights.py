"""The shipped models: what their cards promise, and their first steps made again."""

import hashlib
import warnings
from importlib.resources import files

import pytest
import safetensors.torch
import torch

from llmbook.config import ModelConfig
from llmbook.corpus import HASH_FILE
from llmbook.costs.parameters import parameter_count
from llmbook.foundations.language_modelling import (
    acceptance,
    card,
    generate,
    held_out_loss,
    load,
    split_documents,
    token_stream,
)
from llmbook.foundations.weights import (
    NUM_FIRST_STEPS,
    RECIPES,
    Recipe,
    Run,
    made_tokenizer,
    processor,
    serialized,
    sha256,
    trained,
)
from llmbook.foundations.weights.__main__ import toml

FOLDER = files("llmbook.foundations") / "weights"


@pytest.fixture(scope="module")
def tokens():
    """The training documents, cut by the shipped tokenizer."""
    return token_stream((document.text for document in split_documents()[0]), load("draft")[1])


@pytest.fixture(scope="module")
def held_out():
    texts = (document.text for document in split_documents()[1][:3])
    return token_stream(texts, load("draft")[1])


@pytest.mark.parametrize("name", RECIPES)
def test_the_files_are_those_of_the_card(name):
    data = (FOLDER / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == card(name)["sha256"]
    weights = safetensors.torch.load(data)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    config = ModelConfig(**card(name)["config"])
    assert sum(weight.numel() for weight in weights.values()) == parameter_count(config).total
    assert card(name)["parameters"] == parameter_count(config).total
    assert card(name)["corpus_sha256"] == HASH_FILE.read_text("ascii").split()[0]


@pytest.mark.parametrize("name", RECIPES)
def test_the_card_is_that_of_the_recipe(name):
    settings = {key: value for key, value in card(name)["recipe"].items() if key != "betas"}
    recipe = Recipe(
        config=ModelConfig(**card(name)["config"]), betas=tuple(card(name)["recipe"]["betas"]),
        **settings,
    )  # fmt: skip
    assert recipe == RECIPES[name]
    assert recipe.num_tokens == card(name)["num_tokens"]


def test_the_models_are_as_large_as_promised():
    sizes = [parameter_count(RECIPES[name].config).total for name in ("small", "draft")]
    assert 3.3e6 < sizes[0] < 3.7e6
    assert sizes[1] <= 0.4e6
    shipped = [f for f in FOLDER.iterdir() if f.name.endswith((".safetensors", ".json", ".toml"))]
    assert sum(len(file.read_bytes()) for file in shipped) <= 8e6


def test_both_models_share_the_tokenizer_that_the_corpus_gives():
    tokenizer = load("small")[1]
    assert tokenizer == load("draft")[1] == made_tokenizer()
    assert tokenizer.vocab_size == RECIPES["small"].config.vocab_size
    assert tokenizer.special_ids == {"<|endoftext|>": tokenizer.vocab_size - 1}


def test_the_tokenizer_cuts_a_text_as_hugging_face_does():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ours = load("small")[1]
    letters = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    letters |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letters)}
    spelled = ["".join(letters[byte] for byte in token) for token in ours.tokens[:-1]]
    merges = [(spelled[left], spelled[right]) for left, right in ours.merges]
    theirs = Tokenizer(models.BPE({word: i for i, word in enumerate(spelled)}, merges))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    for document in split_documents()[1][:8]:
        assert ours.encode(document.text) == theirs.encode(document.text).ids
        assert ours.decode(ours.encode(document.text)) == document.text


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_steps_are_those_of_the_card(name, tokens):
    """To the byte on the same kind of processor; elsewhere a product's last bit may differ."""
    model, losses = trained(RECIPES[name], tokens, num_steps=NUM_FIRST_STEPS)
    promised = card(name)["first_steps"]
    if (processor(), torch.__version__) == (card(name)["processor"], card(name)["torch"]):
        assert sha256(serialized(model, torch.float32)) == promised["sha256"]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(
                f"{name} was trained on {card(name)['processor']}, torch {card(name)['torch']}; "
                f"here are {processor()}, torch {torch.__version__}: losses compared, no hash",
                stacklevel=1,
            )
    assert losses == pytest.approx(promised["losses"], abs=0.01)


def test_a_resumed_training_is_an_uninterrupted_one(tmp_path):
    config = RECIPES["draft"].config.but(vocab_size=64, max_seq_len=16)
    recipe = Recipe(config=config, num_steps=205, peak_rate=1e-2, num_warmup_steps=10, batch_size=2)
    text = torch.randint(64, (400,), generator=torch.Generator().manual_seed(0))
    whole, losses = trained(recipe, text)
    trained(recipe, text, num_steps=103, checkpoint=tmp_path / "half.pt")
    steps = []
    resumed, losses_resumed = trained(
        recipe, text, checkpoint=tmp_path / "half.pt", report=lambda step, loss: steps.append(step)
    )
    assert steps == [200, 205]  # nothing was done twice
    assert losses == losses_resumed
    assert serialized(whole, torch.float32) == serialized(resumed, torch.float32)
    assert [file.name for file in tmp_path.iterdir()] == ["half.pt"]


def test_restoring_replays_the_order_of_the_data():
    config = RECIPES["draft"].config.but(vocab_size=64, max_seq_len=16)
    recipe = Recipe(config=config, num_steps=30, peak_rate=1e-2, num_warmup_steps=3, batch_size=2)
    text = torch.randint(64, (200,), generator=torch.Generator().manual_seed(0))
    first, second = Run(recipe, text), Run(recipe, text)
    first.go_on(17)
    second.restore(first.state())
    assert next(first.data).equal(next(second.data))


def test_training_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    config = RECIPES["draft"].config.but(vocab_size=64, max_seq_len=16)
    recipe = Recipe(config=config, num_steps=1, peak_rate=1e-2, num_warmup_steps=1, batch_size=1)
    trained(recipe, torch.arange(64))
    assert torch.get_num_threads() == before


def test_small_knows_the_held_out_text_far_better_than_draft(held_out):
    """Where the cards say so; on a part, whose loss is near that of the whole."""
    losses = {name: held_out_loss(load(name)[0], held_out[:2000], seq_len=256) for name in RECIPES}
    assert losses["small"] < losses["draft"] - 0.5
    for name, loss in losses.items():
        assert loss == pytest.approx(card(name)["held_out_loss"], abs=0.6)


def test_draft_and_small_share_half_of_what_they_expect(held_out):
    assert acceptance(load("small")[0], load("draft")[0], held_out[:3000], seq_len=256) > 0.5


def test_small_writes_words_of_the_corpus():
    model, tokenizer = load("small")
    prompt = torch.tensor([tokenizer.encode(".. module:: json\n   :synopsis:")])
    text = tokenizer.decode(generate(model, prompt, num_tokens=60)[0].tolist())
    vocabulary = {word for d in split_documents()[0] for word in d.text.split()}
    words = text.split()[:-1]
    assert sum(word in vocabulary for word in words) >= 0.7 * len(words) > 0


def test_a_card_is_written_as_it_is_read():
    import tomllib

    fields = {"a": 1, "b": [0.5, 2.0], "c": 'a "word"', "d": {"e": True, "f": 1e-5}}
    assert tomllib.loads(toml(fields)) == fields
