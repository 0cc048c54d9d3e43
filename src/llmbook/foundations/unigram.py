"""Subwords chosen by likelihood: the Unigram model, and SentencePiece's conventions around it.

Page: foundations/tokenization. Papers: kudo2018subword, section 3.2; kudo2018sentencepiece.
Left out: sampling among the ways to cut a text; the prior and the suffix array of SentencePiece.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

META = "▁"  # U+2581, SentencePiece's visible space
BYTE = re.compile("<0x[0-9A-F]{2}>")
NEVER = 1e-12  # count of a piece out of use, which must stay possible


@dataclass(frozen=True)
class Unigram:
    """Pieces with log-probabilities: a text's probability is a product over the pieces of a cut.

    kudo2018subword, section 3.2. A character that is no piece counts as one, e^10 times less likely than
    the least likely piece (the penalty of SentencePiece and of `tokenizers`).
    """

    log_probs: Mapping[str, float]

    @cached_property
    def _unknown(self) -> float:
        return min(self.log_probs.values()) - 10

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.log_probs))

    def arcs(self, text: str) -> Iterator[tuple[int, int, float]]:
        """Start, end and log-probability of each piece in the text, by end, then by start."""
        for end in range(1, len(text) + 1):
            for start in range(max(0, end - self._longest), end):
                known = self.log_probs.get(text[start:end])
                if known is not None:
                    yield start, end, known
                elif end - start == 1:
                    yield start, end, self._unknown

    def encode(self, text: str) -> list[str]:
        """The most likely cut."""
        return self.best_cut(text)[1]

    def best_cut(self, text: str, *, whole: bool = True) -> tuple[float, list[str]]:
        """Log-probability and pieces of the most likely cut (Viterbi), `whole` or in two at least."""
        best = [0.0] + [-math.inf] * len(text)
        came_from = [0] * (len(text) + 1)
        for start, end, log_prob in self.arcs(text):
            if best[start] + log_prob > best[end] and (whole or end - start < len(text)):
                best[end], came_from[end] = best[start] + log_prob, start
        pieces, end = [], len(text)
        while end:
            pieces.append(text[came_from[end] : end])
            end = came_from[end]
        return best[-1], pieces[::-1]

    def expected_counts(self, text: str) -> tuple[float, dict[str, float]]:
        """Log-probability of a text over all its cuts, and how often each piece is in a cut.

        Forward and backward sums over the arcs; a piece of log-probability p between i and j counts
        exp(forward_i + p + backward_j - forward_end).
        """
        arcs = list(self.arcs(text))
        forward = [0.0] + [-math.inf] * len(text)
        backward = [-math.inf] * len(text) + [0.0]
        for start, end, log_prob in arcs:
            forward[end] = log_add(forward[end], forward[start] + log_prob)
        for start, end, log_prob in reversed(arcs):
            backward[start] = log_add(backward[start], backward[end] + log_prob)
        counts: defaultdict[str, float] = defaultdict(float)
        for start, end, log_prob in arcs:
            log_share = forward[start] + log_prob + backward[end] - forward[-1]
            counts[text[start:end]] += math.exp(log_share)
        return forward[-1], counts


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)) without overflow.

    >>> log_add(-math.inf, 1000.0)
    1000.0
    """
    low, high = sorted((a, b))
    return high + math.log1p(math.exp(low - high)) if low > -math.inf else high


def em_step(model: Unigram, words: Mapping[str, int]) -> tuple[float, Unigram]:
    """Log-likelihood of counted words, and the model whose probabilities are the expected shares."""
    log_likelihood, counts = 0.0, dict.fromkeys(model.log_probs, NEVER)
    for word, times in words.items():
        log_prob, expected = model.expected_counts(word)
        log_likelihood += times * log_prob
        for piece in expected.keys() & counts:
            counts[piece] += times * expected[piece]
    total = math.log(sum(counts.values()))
    return log_likelihood, Unigram({x: math.log(count) - total for x, count in counts.items()})


def pruned(model: Unigram, words: Mapping[str, int], *, size: int) -> Unigram:
    """The characters, and of the longer pieces those whose loss would cost the most likelihood.

    A piece's loss: its count in the best cuts, times what the best cut of it in two or more costs.
    """
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for piece in model.encode(word):
            counts[piece] += times
    losses = {
        piece: counts[piece] * (log_prob - model.best_cut(piece, whole=False)[0])
        for piece, log_prob in model.log_probs.items()
        if len(piece) > 1
    }
    room = size - (len(model.log_probs) - len(losses))
    dropped = set(sorted(losses, key=lambda piece: (-losses[piece], piece))[max(room, 0) :])
    return Unigram({x: log_prob for x, log_prob in model.log_probs.items() if x not in dropped})


def train_unigram(
    words: Mapping[str, int], *, vocab_size: int, longest: int = 8, kept_share: float = 0.8
) -> Unigram:
    """Start with every string seen twice; re-estimate twice, drop the least useful; again.

    kudo2018subword, section 3.2, which keeps 80 % a round. SentencePiece and `tokenizers` differ in
    the first vocabulary, in a prior on the counts and in the loss, so their pieces differ too.

    Raises:
        ValueError: if there are more characters than `vocab_size`.
    """
    seen: Counter[str] = Counter()
    for word, times in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + longest, len(word)) + 1):
                seen[word[start:end]] += times
    if (characters := sum(len(piece) == 1 for piece in seen)) > vocab_size:
        raise ValueError(f"vocab_size {vocab_size} is less than the {characters} characters in use")
    weights = {x: times * len(x) for x, times in seen.items() if times > 1 or len(x) == 1}
    total = sum(weights.values())
    model = Unigram({x: math.log(weight / total) for x, weight in weights.items()})
    while True:
        for _ in range(2):
            _, model = em_step(model, words)
        if len(model.log_probs) <= vocab_size:
            return model
        size = max(vocab_size, int(kept_share * len(model.log_probs)))
        model = pruned(model, words, size=size)


def marked(text: str) -> str:
    """SentencePiece's view of a text: NFKC, no spare white space, each space and the start as ▁.

    >>> marked("a  full－width，line ")
    '▁a▁full-width,line'
    """
    return META + META.join(unicodedata.normalize("NFKC", text).split())


def with_byte_fallback(pieces: Iterable[str], vocabulary: Set[str]) -> list[str]:
    """Spell each piece that the vocabulary lacks by its UTF-8 bytes.

    >>> with_byte_fallback(["▁", "哲", "学"], {"▁", "学"})
    ['▁', '<0xE5>', '<0x93>', '<0xB2>', '学']
    """
    return [
        token
        for piece in pieces
        for token in ([piece] if piece in vocabulary else [f"<0x{b:02X}>" for b in piece.encode()])
    ]


def unmarked(pieces: Iterable[str]) -> str:
    """Text of SentencePiece's pieces, bytes among them.

    >>> unmarked(["▁", "<0xE5>", "<0x93>", "<0xB2>", "学"])
    '哲学'
    """
    chunks = (bytes([int(p[3:5], 16)]) if BYTE.fullmatch(p) else p.encode() for p in pieces)
    return b"".join(chunks).decode(errors="replace").replace(META, " ").removeprefix(" ")
