"""Against Hugging Face `tokenizers`, a naive version that counts anew, and laws."""

import json
import math
import random
import re
from collections import Counter
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmbook.corpus import bilingual_titles, documents
from llmbook.foundations import tokenization
from llmbook.foundations.tokenization import (
    PIECE,
    BytePairTokenizer,
    byte_order,
    extended,
    fertility,
    mean_initialised,
    merge,
    train_byte_pair,
    train_word_pieces,
    word_pieces,
)

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.fixture(scope="module")
def texts():
    return [document.text for document in documents()[::17]] + [t.title for t in bilingual_titles()]


def rust_tokenizer(texts, *, vocab_size, special_tokens=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = BYTE_LEVEL, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=BYTE_LEVEL.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def printed(token):
    """A token as GPT-2 writes it, a visible character for each byte."""
    visible = {byte: chr(byte) for byte in byte_order()[:188]}
    hidden = {byte: chr(256 + i) for i, byte in enumerate(byte_order()[188:])}
    return "".join((visible | hidden)[byte] for byte in token)


def rust_merges(tokenizer):
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def our_merges(tokenizer):
    return [tuple(printed(tokenizer.tokens[i]) for i in pair) for pair in tokenizer.merges]


def test_merges_and_encodings_are_those_of_tokenizers(texts):
    ours = train_byte_pair(texts, vocab_size=2000)
    rust = rust_tokenizer(texts, vocab_size=2000)
    assert our_merges(ours) == rust_merges(rust)
    rust_id = [rust.token_to_id(printed(token)) for token in ours.tokens]
    unseen = [document.text for document in documents()[5::61]]
    for text in texts[:5] + texts[-20:] + unseen:
        assert [rust_id[i] for i in ours.encode(text)] == rust.encode(text).ids


def test_equal_counts_are_decided_as_tokenizers_does():
    draw = random.Random(0)
    for alphabet in ("ab", "aab ", "-- =", "语言模型 a", "\n\t a\u00a0\u2003", "é ñß\x00\xad"):
        for length in (10, 60, 300):
            texts = ["".join(draw.choices(alphabet, k=length)) for _ in range(4)]
            ours = train_byte_pair(texts, vocab_size=310)
            assert our_merges(ours) == rust_merges(rust_tokenizer(texts, vocab_size=310))


def test_pieces_are_those_of_tokenizers_for_every_character_that_it_knows():
    """The two have different releases of Unicode: what the older does not know is left out."""
    wrong = []
    for code in (*range(0xD800), *range(0xE000, 0x3400), *range(0x4E00, 0xA000, 97)):
        text = f"a{chr(code)}1 {chr(code)} {chr(code)}"
        rust = [text[slice(*span)] for _, span in BYTE_LEVEL.pre_tokenize_str(text)]
        if PIECE.findall(text) != rust:
            wrong.append(code)
    assert len(wrong) < 20, [hex(code) for code in wrong]
    text = "it's  we'll 1st\n\n  x=='é'\u3000语言 12三 _a\x1c\x85"
    rust = [text[slice(*span)] for _, span in BYTE_LEVEL.pre_tokenize_str(text)]
    assert PIECE.findall(text) == rust


def naive_merges(texts, *, num_merges):
    words = Counter(piece for text in texts for piece in PIECE.findall(text))
    spelled = {word: [bytes([b]) for b in word.encode()] for word in words}
    merges, vocabulary = [], [bytes([b]) for b in byte_order()]
    for _ in range(num_merges):
        counts = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        best = max(counts.values())
        tied = [pair for pair, count in counts.items() if count == best]
        left, right = min(tied, key=lambda pair: [vocabulary.index(part) for part in pair])
        merges.append((left, right))
        vocabulary.append(left + right)
        for word, parts in spelled.items():
            joined = []
            while parts:
                whole = parts[:2] == [left, right]
                joined.append(left + right if whole else parts[0])
                parts = parts[2 if whole else 1 :]
            spelled[word] = joined
    return merges


def test_merges_are_those_of_a_naive_count():
    texts = [documents()[3].text[:4000], "aaaa aaaaa ababab"]
    tokenizer = train_byte_pair(texts, vocab_size=256 + 80)
    ours = [tuple(tokenizer.tokens[i] for i in pair) for pair in tokenizer.merges]
    assert ours == naive_merges(texts, num_merges=80)


def test_a_corpus_read_twice_costs_no_more_merging(texts, monkeypatch):
    calls = Counter()

    def counted(*arguments):
        calls["merge"] += 1
        return merge(*arguments)

    monkeypatch.setattr(tokenization, "merge", counted)
    once = train_byte_pair(texts[:10], vocab_size=500)
    first = calls["merge"]
    assert train_byte_pair(texts[:10] * 2, vocab_size=500) == once
    assert calls["merge"] == 2 * first


def test_work_is_bounded_by_the_letters_of_the_distinct_words(texts, monkeypatch):
    """A merge shortens each word it reads, and forms two pairs that may be gone when they are due."""
    calls = Counter()

    def counted(*arguments):
        calls["merge"] += 1
        return merge(*arguments)

    monkeypatch.setattr(tokenization, "merge", counted)
    train_byte_pair(texts[:6], vocab_size=10**6)
    letters = sum(len(word.encode()) for word in {w for t in texts[:6] for w in PIECE.findall(t)})
    assert calls["merge"] <= 3 * letters


def test_any_text_comes_back(texts):
    tokenizer = train_byte_pair(texts[:8], vocab_size=700)
    draw = random.Random(1)
    strange = "".join(chr(draw.choice((draw.randrange(0xD800), 0x1F600))) for _ in range(2000))
    for text in ("", " ", strange, *texts[:40]):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_torn_characters_are_shown_as_tokenizers_shows_them(texts):
    rust = rust_tokenizer(texts, vocab_size=300)
    ours = train_byte_pair(texts, vocab_size=300)
    for torn in ("哲".encode()[:2], b"\xff\xfe", "a😀".encode()[:4] + b"b", b"\xe5\x93x\xb2"):
        ids = [rust.token_to_id(printed(bytes([byte]))) for byte in torn]
        assert ours.decode(list(torn)) == rust.decode(ids)


def test_a_token_spells_itself_and_no_two_are_alike(texts):
    """So an id stays what it was when a vocabulary grows, and a row's mean is the row."""
    tokenizer = train_byte_pair(texts, vocab_size=3000)
    assert len(set(tokenizer.tokens)) == 3000
    assert [tokenizer.replay(token) for token in tokenizer.tokens] == [[i] for i in range(3000)]


def test_special_tokens_are_the_last_ids_and_never_read_from_text(texts):
    tokenizer = train_byte_pair(texts[:5], vocab_size=400, special_tokens=["<end>", "<pad>"])
    assert tokenizer.vocab_size == 400
    assert tokenizer.special_ids == {"<end>": 398, "<pad>": 399}
    assert max(tokenizer.encode("a<end>b<pad>")) < 398
    assert tokenizer.decode([97, 398]) == "a<end>"
    assert BytePairTokenizer.from_bytes(tokenizer.to_bytes()) == tokenizer


def test_extension_keeps_every_old_token_and_makes_no_english_dearer(texts):
    english = [document.text for document in documents()[::40]]
    base = train_byte_pair(english, vocab_size=1000, special_tokens=["<end>"])
    titles = [t.title for t in bilingual_titles()]
    grown = extended(base, train_byte_pair(titles, vocab_size=900))
    assert grown.tokens[:999] == base.tokens[:999]
    assert len(set(grown.tokens)) == grown.vocab_size
    assert set(train_byte_pair(titles, vocab_size=900).tokens) <= set(grown.tokens)
    plain = [title.english for title in bilingual_titles()]
    assert sum(map(len, map(grown.encode, titles))) < sum(map(len, map(base.encode, titles)))
    assert sum(map(len, map(grown.encode, plain))) <= sum(map(len, map(base.encode, plain)))
    assert all(grown.decode(grown.encode(title)) == title for title in titles)


def test_mean_rows_keep_the_old_and_average_the_spelling():
    base = BytePairTokenizer(((97, 98),), ("<end>",))
    grown = extended(base, BytePairTokenizer(((97, 98), (256, 99), (99, 100))))
    table = torch.randn(258, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = mean_initialised(table, base=base, extended=grown)
    assert torch.equal(rows[:257], table[:257])
    assert torch.equal(rows[-1], table[-1])
    torch.testing.assert_close(rows[257], (table[256] + table[99]) / 2)  # abc was ab, c
    torch.testing.assert_close(rows[258], (table[99] + table[100]) / 2)
    hidden = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(rows[257] @ hidden, (table[[256, 99]] @ hidden).mean())
    with pytest.raises(ValueError, match=r"table has 258 rows for a vocabulary of 260"):
        mean_initialised(table, base=grown, extended=grown)


def test_fertility_counts_tokens_a_unit():
    assert fertility(lambda text: text.encode(), ["语言", "模型"]) == 3
    assert math.isclose(fertility(list, ["ab cd", "e"], units=lambda t: len(t.split())), 6 / 3)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "special", "message"),
    [
        (["a"], 256, ["<end>"], "vocab_size 256 is less than 256 bytes and 1 special tokens"),
        (["a"], 200, [], "vocab_size 200 is less than 256 bytes"),
        ([], 300, [], "texts hold no text"),
        ([""], 300, [], "texts hold no text"),
    ],
)
def test_what_cannot_be_trained_is_refused(texts, vocab_size, special, message):
    with pytest.raises(ValueError, match=message):
        train_byte_pair(texts, vocab_size=vocab_size, special_tokens=special)


def test_gpt2s_vocabulary_is_bytes_merges_and_one_special_token():
    """radford2019language, section 2.2 and 2.3: 50,257 entries."""
    gpt2 = BytePairTokenizer(((97, 98),) * 50_000, ("<|endoftext|>",))
    assert gpt2.vocab_size == 50_257


def test_word_pieces_are_those_of_tokenizers():
    words = Counter(word for d in documents()[:40] for word in d.text.split() if word.isalpha())
    vocabulary = train_word_pieces(dict(words.most_common(150)), vocab_size=160)
    rust = Tokenizer(
        models.WordPiece({p: i for i, p in enumerate(["[UNK]", *vocabulary])}, unk_token="[UNK]")
    )
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    cut = {word: word_pieces(word, set(vocabulary)) for word in [*words, "哲学", "a1"]}
    assert cut == {word: rust.encode(word).tokens for word in cut}
    assert ["[UNK]"] in cut.values()
    assert max(map(len, cut.values())) > 3


def test_word_piece_training_begins_as_in_hugging_faces_course():
    """The course merges ##g and ##s first, of score 5 / (20 · 5): BPE would take ##u and ##g."""
    words = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    letters = ["##g", "##n", "##s", "##u", "b", "h", "p"]
    assert train_word_pieces(words, vocab_size=9)[:7] == letters
    assert train_word_pieces(words, vocab_size=8)[7:] == ["##gs"]
    assert len(train_word_pieces(words, vocab_size=1000)) < 30  # a corpus spent


def test_the_published_order_of_a_chinese_primer_is_greedy_at_each_step():
    """lukesubword's claim has ties: each merge in it is among the most frequent at its turn."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    spelled = {word: [*word, "</w>"] for word in words}
    order = "es est est</w> lo low ne new newest</w> low</w> wi wid widest</w> lowe lower lower</w>"
    for token in re.findall(r"\S+", order):
        pairs = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        (pair,) = [pair for pair in pairs if "".join(pair) == token]
        assert pairs[pair] == max(pairs.values())
        spelled = {word: merge(parts, pair, token) for word, parts in spelled.items()}
