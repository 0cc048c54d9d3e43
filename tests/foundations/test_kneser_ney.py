"""Kneser-Ney against a count by hand and a naive version; its laws."""

import re
from collections import Counter
from math import isclose

import numpy as np
import pytest

from llmbook.foundations.kneser_ney import (
    grams_of,
    next_token_probabilities,
    train_kneser_ney,
)


def random_text(seed, *, vocab_size, length):
    """Skewed, so that some grams come once, some twice and some often."""
    draw = np.random.default_rng(seed).random(length)
    return (vocab_size * draw**2).astype(np.int64)


class Naive:
    """The definition with tuples in dictionaries, one probability at a time."""

    def __init__(self, tokens, *, order, vocab_size):
        self.vocab_size, self.order = vocab_size, order
        tuples = {
            n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            for n in range(1, order + 1)
        }
        self.counts = {order: Counter(tuples[order])}
        for n in range(1, order):
            self.counts[n] = Counter(gram[1:] for gram in set(tuples[n + 1]))
        self.discounts = {}
        for n, counts in self.counts.items():
            once, twice = (sum(c == i for c in counts.values()) for i in (1, 2))
            self.discounts[n] = once / (once + 2 * twice) if once and twice else 0.5

    def probability(self, token, context):
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        n, d = len(context) + 1, self.discounts[len(context) + 1]
        after = {g: c for g, c in self.counts[n].items() if g[:-1] == context}
        if not after:
            return lower
        kept = max(self.counts[n][(*context, token)] - d, 0)
        return (kept + d * len(after) * lower) / sum(after.values())


@pytest.mark.parametrize(("order", "vocab_size"), [(1, 5), (2, 4), (3, 7), (5, 3)])
def test_probabilities_are_those_of_the_definition(order, vocab_size):
    training = random_text(order, vocab_size=vocab_size, length=300)
    text = random_text(9, vocab_size=vocab_size, length=40)
    model = train_kneser_ney(training, order=order, vocab_size=vocab_size)
    naive = Naive(training.tolist(), order=order, vocab_size=vocab_size)
    expected = [naive.probability(text[i], text[:i].tolist()) for i in range(1, len(text))]
    assert next_token_probabilities(model, text) == pytest.approx(expected, rel=1e-12)


def test_a_bigram_model_by_hand():
    """Text 0 1 0 1 0 2: grams 01 01 10 10 02, so n_1 = 1, n_2 = 2 and d = 1 / 5.

    Before 0 stands 1, before 1 and 2 stands 0: a continuation each of 3, all once, so d = 1 / 2,
    and p(1) = (1 - 1/2 + 3/2 * 1/3) / 3 = 1/3. After 0: p(1 | 0) = (2 - 1/5 + 2/5 * 1/3) / 3.
    """
    model = train_kneser_ney(np.array([0, 1, 0, 1, 0, 2]), order=2, vocab_size=3)
    (probability,) = next_token_probabilities(model, np.array([0, 1]))
    assert isclose(probability, (2 - 1 / 5 + 2 / 15) / 3)


def test_frequency_after_one_word_alone_is_worth_one_context():
    """Kneser and Ney's point: a token that only ever follows one other gets little elsewhere."""
    text = np.array([0, 1] * 20 + [2, 3, 4, 3, 5, 3, 6, 3])
    model = train_kneser_ney(text, order=2, vocab_size=8)
    after_unseen = [next_token_probabilities(model, np.array([7, token]))[0] for token in (1, 3)]
    assert after_unseen[1] > 2 * after_unseen[0]  # 1 is five times as frequent as 3


@pytest.mark.parametrize("context", [[0, 1, 2], [3, 3, 3], [4]])
def test_probabilities_sum_to_one(context):
    vocab_size = 5
    training = random_text(1, vocab_size=vocab_size - 1, length=80)  # token 4 is never seen
    model = train_kneser_ney(training, order=4, vocab_size=vocab_size)
    texts = (np.array([*context, token]) for token in range(vocab_size))
    assert isclose(sum(next_token_probabilities(model, text)[-1] for text in texts), 1)


def test_every_token_but_the_first_has_a_probability():
    model = train_kneser_ney(random_text(2, vocab_size=4, length=50), order=4, vocab_size=4)
    for length in range(1, 6):
        assert len(next_token_probabilities(model, np.arange(length) % 4)) == length - 1


def test_grams_are_digits_in_base_v():
    assert grams_of(np.array([1, 2, 3, 4]), length=3, vocab_size=100).tolist() == [10203, 20304]
    assert grams_of(np.array([1]), length=3, vocab_size=100).tolist() == []


@pytest.mark.parametrize(
    ("tokens", "order", "vocab_size", "message"),
    [
        ([0, 1], 3, 4, "order 3 is not between 1 and the 2 tokens"),
        ([], 1, 4, "order 1 is not between 1 and the 0 tokens"),
        ([0, 1], 0, 4, "order 0 is not between"),
        ([0, 4], 1, 4, "tokens from 0 to 4 do not fit vocab_size 4"),
        ([-1, 0], 1, 4, "tokens from -1 to 0 do not fit vocab_size 4"),
        ([0] * 9, 5, 10_000, "vocab_size 10000 to the power of order 5 exceeds 63 bits"),
    ],
)
def test_what_cannot_be_counted_is_refused(tokens, order, vocab_size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train_kneser_ney(np.array(tokens, dtype=np.int64), order=order, vocab_size=vocab_size)
