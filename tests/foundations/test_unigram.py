"""Against Hugging Face `tokenizers`, all cuts written out, and laws."""

import math
from collections import Counter
from itertools import product

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from llmbook.corpus import bilingual_titles, documents
from llmbook.foundations.unigram import (
    Unigram,
    em_step,
    log_add,
    marked,
    pruned,
    train_unigram,
    unmarked,
    with_byte_fallback,
)


@pytest.fixture(scope="module")
def words():
    counts = Counter(word for d in documents()[:30] for word in d.text.split() if word.isalpha())
    return {marked(word): count for word, count in counts.most_common(120)}


@pytest.fixture(scope="module")
def model(words):
    return train_unigram(words, vocab_size=120)


def all_cuts(text):
    for cuts in product((False, True), repeat=len(text) - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [len(text)]
        yield [text[i:j] for i, j in zip([0, *ends], ends, strict=False)]


TOY = Unigram({"h": -3.0, "u": -2.5, "g": -3.5, "hu": -4.0, "ug": -3.0, "hug": -7.0, "gs": -4.1})


@pytest.mark.parametrize("text", ["h", "hug", "hughug", "ughugs", "gsgs"])
def test_sums_and_the_best_cut_are_those_of_all_cuts(text):
    def log_prob(cut):
        chance = [
            TOY.log_probs.get(piece, -17.0 if len(piece) == 1 else -math.inf) for piece in cut
        ]
        return sum(chance)

    scores = {tuple(cut): log_prob(cut) for cut in all_cuts(text)}
    score, pieces = TOY.best_cut(text)
    assert scores[tuple(pieces)] == pytest.approx(max(scores.values()))
    assert score == pytest.approx(max(scores.values()))
    total = sum(map(math.exp, scores.values()))
    log_likelihood, counts = TOY.expected_counts(text)
    assert log_likelihood == pytest.approx(math.log(total))
    for piece in counts:
        expected = sum(math.exp(s) * cut.count(piece) for cut, s in scores.items()) / total
        assert counts[piece] == pytest.approx(expected, rel=1e-9)


def test_expected_counts_cover_each_character_once():
    _, counts = TOY.expected_counts("hugshug")
    assert sum(len(piece) * count for piece, count in counts.items()) == pytest.approx(7)


def test_a_cut_in_two_is_the_best_but_the_whole():
    model = Unigram({"a": -1.0, "b": -1.0, "ab": -0.5})
    assert model.best_cut("ab") == (-0.5, ["ab"])
    assert model.best_cut("ab", whole=False) == (-2.0, ["a", "b"])


def test_best_cuts_are_those_of_tokenizers(model, words):
    rust = Tokenizer(models.Unigram([("<unk>", 0.0), *model.log_probs.items()], unk_id=0))
    others = [marked(word) for document in documents()[40:43] for word in document.text.split()]
    for word in {*words, *others}:
        ours = [piece for piece in model.encode(word) if piece in model.log_probs]
        theirs = [token for token in rust.encode(word).tokens if token in model.log_probs]
        assert ours == theirs, word


def test_em_never_lowers_the_likelihood_and_its_shares_sum_to_one(words):
    pieces = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, i + 4)}
    model = Unigram({piece: -math.log(len(pieces)) for piece in pieces})
    likelihoods = []
    for _ in range(5):
        log_likelihood, model = em_step(model, words)
        likelihoods.append(log_likelihood)
        assert sum(map(math.exp, model.log_probs.values())) == pytest.approx(1)
    assert likelihoods == sorted(likelihoods)
    assert likelihoods[-1] > likelihoods[0] + 100


def test_em_finds_the_shares_that_made_the_words():
    """Where no piece can be cut, the likeliest shares are the relative counts."""
    model = Unigram({"a": math.log(0.5), "b": math.log(0.5)})
    _, model = em_step(model, {"ab": 1, "aab": 2})
    assert math.exp(model.log_probs["a"]) == pytest.approx(5 / 8)


def test_training_ends_at_its_size_with_every_character(model, words):
    assert len(model.log_probs) == 120
    assert {letter for word in words for letter in word} <= model.log_probs.keys()
    whole = [word for word in words if model.encode(word) == [word]]
    assert marked("the") in whole
    with pytest.raises(ValueError, match="vocab_size 3 is less than the"):
        train_unigram(words, vocab_size=3)


def test_pruning_drops_what_is_never_in_a_best_cut():
    model = Unigram({"a": -1.0, "b": -1.0, "c": -1.0, "ab": -1.5, "bc": -9.0})
    assert pruned(model, {"abc": 4, "bc": 1}, size=4).log_probs.keys() == {"a", "b", "c", "ab"}


def test_pruning_weighs_a_piece_by_its_count():
    """Without "ab" a word costs 1.5 nats more, without "cd" only 1; but there are ten of these."""
    model = Unigram({**dict.fromkeys("abcd", -2.0), "ab": -2.5, "cd": -3.0})
    assert pruned(model, {"ab": 1, "cd": 10}, size=5).log_probs.keys() == {*"abcd", "cd"}
    assert pruned(model, {"ab": 10, "cd": 1}, size=5).log_probs.keys() == {*"abcd", "ab"}


@pytest.mark.parametrize(
    "text", ["Hello world", " two  blanks ", "ｆｕｌｌ，width", "", "人工 智能", "a\tb\nc"]
)
def test_marks_are_those_of_tokenizers(text):
    blanks = normalizers.Replace(" ", "▁")
    lines = [normalizers.Replace("\t", " "), normalizers.Replace("\n", " ")]
    single = [normalizers.Replace("  ", " ")] * 4
    rust = normalizers.Sequence(
        [normalizers.NFKC(), *lines, *single, normalizers.Strip(), normalizers.Prepend("▁"), blanks]
    )
    if text:
        assert marked(text) == rust.normalize_str(text)
        metaspace = pre_tokenizers.Metaspace(split=False)
        plain = " ".join(marked(text)[1:].split("▁"))
        assert [piece for piece, _ in metaspace.pre_tokenize_str(plain)] == [marked(text)]
    else:
        assert marked(text) == "▁"


def test_bytes_are_the_fallback_of_tokenizers():
    known = [("<unk>", 0.0), ("▁", -2.0), ("学", -3.0)]
    byte_pieces = [(f"<0x{byte:02X}>", -5.0) for byte in range(256)]
    rust = Tokenizer(models.Unigram(known + byte_pieces, unk_id=0, byte_fallback=True))
    model = Unigram(dict(known[1:]))
    pieces = with_byte_fallback(model.encode(marked("哲学")), set(model.log_probs))
    assert pieces == rust.encode(marked("哲学")).tokens
    assert unmarked(pieces) == "哲学"


def test_titles_come_back_as_normalised():
    model = Unigram({"▁": -1.0, "模": -2.0, "型": -2.0, "模型": -2.5})
    for title in bilingual_titles():
        pieces = with_byte_fallback(model.encode(marked(title.title)), set(model.log_probs))
        assert unmarked(pieces) == marked(title.title).replace("▁", " ").removeprefix(" ")


def test_log_add_of_nothing_is_nothing():
    assert log_add(-math.inf, -math.inf) == -math.inf
    assert log_add(math.log(2), math.log(3)) == pytest.approx(math.log(5))
    assert log_add(-1000.0, -1000.0) == pytest.approx(math.log(2) - 1000)
