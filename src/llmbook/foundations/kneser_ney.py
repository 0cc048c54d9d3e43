"""An n-gram model with interpolated Kneser-Ney smoothing: the baseline that counts and does not learn.

Page: foundations/language_modelling. Papers: kneser1995improved (lower orders count contexts, not
occurrences); chen1999empirical (the interpolated form used here).
Left out: three discounts instead of one for each order (chen1999empirical's modified form).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """The n-grams of one length, each as one number in base V, and their contexts likewise."""

    grams: Ints  # ascending
    counts: Ints  # how often, or, below the highest order, after how many different tokens
    contexts: Ints  # ascending
    totals: Ints  # of the counts after each context
    types: Ints  # different tokens seen after each context
    discount: float


@dataclass(frozen=True)
class KneserNey:
    """Counts of all orders from 1 to n."""

    vocab_size: int
    orders: tuple[Order, ...]


def grams_of(tokens: Ints, *, length: int, vocab_size: int) -> Ints:
    """Every run of `length` tokens as one number, its digits in base V.

    >>> grams_of(np.array([1, 2, 3]), length=2, vocab_size=10).tolist()
    [12, 23]
    """
    count = max(0, len(tokens) - length + 1)
    grams = np.zeros(count, np.int64)
    for i in range(length):
        grams = grams * vocab_size + tokens[i : i + count]
    return grams


def counted(grams: Ints, counts: Ints, *, vocab_size: int) -> Order:
    """The table of one order; its discount is n_1 / (n_1 + 2 n_2), n_i being grams of count i.

    A small text may have no gram of one of the two counts: then 1/2.
    """
    contexts, first = np.unique(grams // vocab_size, return_index=True)
    once, twice = (int((counts == i).sum()) for i in (1, 2))
    return Order(
        grams=grams,
        counts=counts,
        contexts=contexts,
        totals=np.add.reduceat(counts, first),
        types=np.diff(np.append(first, len(grams))),
        discount=once / (once + 2 * twice) if once and twice else 0.5,
    )


def train_kneser_ney(tokens: Ints, *, order: int, vocab_size: int) -> KneserNey:
    """Count a text.

    Raises:
        ValueError: if the text is shorter than `order`, a token lies outside the vocabulary, or V^n
        does not fit into 63 bits.
    """
    if order < 1 or len(tokens) < order:
        raise ValueError(f"order {order} is not between 1 and the {len(tokens)} tokens of the text")
    if order * np.log2(vocab_size) > 63:
        raise ValueError(f"vocab_size {vocab_size} to the power of order {order} exceeds 63 bits")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"tokens from {tokens.min()} to {tokens.max()} do not fit vocab_size {vocab_size}"
        )
    grams, counts = np.unique(
        grams_of(tokens, length=order, vocab_size=vocab_size), return_counts=True
    )
    orders = [counted(grams, counts, vocab_size=vocab_size)]
    for length in range(order - 1, 0, -1):  # strike the first token off every different gram
        grams = np.unique(grams_of(tokens, length=length + 1, vocab_size=vocab_size))
        grams, counts = np.unique(grams % vocab_size**length, return_counts=True)
        orders.insert(0, counted(grams, counts, vocab_size=vocab_size))
    return KneserNey(vocab_size, tuple(orders))


def found(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    """The value of each wanted key, 0 where there is none."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return cast(Ints, np.where(keys[places] == wanted, values[places], 0))


def next_token_probabilities(model: KneserNey, tokens: Ints) -> Floats:
    r"""p(t_i | the n - 1 tokens before it) of every token but the first.

    From order to order, h a context and h' the same without its first token:
    p(w | h) = (max(c(hw) - d, 0) + d N(h .) p(w | h')) / c(h .), where N(h .) is the number of
    different tokens after h; p(w | h') where h was never seen. Below order 1 all V are as likely.
    """
    V = model.vocab_size
    probabilities = np.full(len(tokens) - 1, 1 / V)
    for length, order in enumerate(model.orders, start=1):
        place = np.arange(max(0, length - 2), len(probabilities))  # where the context is whole
        grams = (
            grams_of(tokens, length=length, vocab_size=V)[-len(place) :] if len(place) else place
        )
        count = found(order.grams, order.counts, grams)
        total = found(order.contexts, order.totals, grams // V)
        types = found(order.contexts, order.types, grams // V)
        lower = probabilities[place]
        kept = np.maximum(count - order.discount, 0) + order.discount * types * lower
        probabilities[place] = np.where(total > 0, kept / np.maximum(total, 1), lower)
    return probabilities
