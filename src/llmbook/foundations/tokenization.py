"""How text becomes the numbers that a model reads: subwords learned from a corpus.

Page: foundations/tokenization. Papers: sennrich2015neural, algorithm 1 (byte-pair encoding);
radford2019language, section 2.2 (over bytes); cui2023efficient, section 2.2 (extension);
schuster2012japanese (WordPiece). The Unigram model is in `unigram`.
Left out: special tokens inside a text (a text never becomes one), merges dropped at random.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import regex
import torch
from jaxtyping import Float
from torch import Tensor

Pair = tuple[int, int]
Symbol = TypeVar("Symbol", int, str)

# GPT-2's pieces of text, none of which a token crosses: a contraction, a word, a number or a run of
# other signs, each with the space before it, and white space up to the last one before a word.
PIECE = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class BytePairTokenizer:
    """Byte-level byte-pair encoding: any text has tokens, for the first 256 are the bytes.

    A token's id is its byte, or 256 + its merge's place in `merges`, or comes after all these if it
    is special.

    >>> tokenizer = BytePairTokenizer(merges=((97, 98), (256, 99)), special_tokens=("<end>",))
    >>> tokenizer.encode("abcab")
    [257, 256]
    >>> tokenizer.decode([257, 256, *tokenizer.special_ids.values()])
    'abcab<end>'
    """

    merges: tuple[Pair, ...]
    special_tokens: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        """Number of ids: 256 bytes, the merges, the special tokens."""
        return 256 + len(self.merges) + len(self.special_tokens)

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for."""
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            tokens.append(tokens[left] + tokens[right])
        return (*tokens, *(token.encode() for token in self.special_tokens))

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The id of each special token."""
        return {token: 256 + len(self.merges) + i for i, token in enumerate(self.special_tokens)}

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {pair: 256 + rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def _known_pieces(self) -> dict[str, list[int]]:
        return {}

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, which never holds a special token; a piece seen before costs a look-up."""
        known, ids = self._known_pieces, []
        for piece in PIECE.findall(text):
            if piece not in known:
                known[piece] = self.replay(piece.encode())
            ids += known[piece]
        return ids

    def replay(self, piece: bytes) -> list[int]:
        """Tokens of one piece: the earliest merge that fits, everywhere, until none fits."""
        ids = list(piece)
        while fitting := [self._ranks[pair] for pair in pairwise(ids) if pair in self._ranks]:
            token = min(fitting)
            ids = merge(ids, self.merges[token - 256], token)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of these tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")

    def to_bytes(self) -> bytes:
        """The tokenizer as a small file: its merges and special tokens in JSON."""
        fields = {"merges": self.merges, "special_tokens": self.special_tokens}
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> BytePairTokenizer:
        """Undo `to_bytes`.

        >>> tokenizer = BytePairTokenizer(((97, 98),), ("<end>",))
        >>> BytePairTokenizer.from_bytes(tokenizer.to_bytes()) == tokenizer
        True
        """
        fields = json.loads(data)
        merges = tuple((left, right) for left, right in fields["merges"])
        return cls(merges, tuple(fields["special_tokens"]))


def merge(
    symbols: Sequence[Symbol], pair: tuple[Symbol, Symbol], merged_symbol: Symbol
) -> list[Symbol]:
    """Replace each occurrence of a pair by one symbol, from left to right.

    >>> merge([7, 7, 7, 8], (7, 7), 256)
    [256, 7, 8]
    """
    left, right = pair
    merged, i = [], 0
    while i < len(symbols):
        if symbols[i] == left and i + 1 < len(symbols) and symbols[i + 1] == right:
            merged.append(merged_symbol)
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def train_byte_pair(
    texts: Iterable[str], *, vocab_size: int, special_tokens: Sequence[str] = ()
) -> BytePairTokenizer:
    """Learn merges: time and again the most frequent pair of neighbours becomes one token.

    sennrich2015neural, algorithm 1, over the bytes of GPT-2's pieces. Of pairs equally frequent the
    one with the smaller ids is taken, a byte counting by its place in `byte_order`: so Hugging
    Face's `tokenizers` learns the same merges. A corpus too small for `vocab_size` gives fewer.

    Raises:
        ValueError: if there is no room for the 256 bytes and the special tokens, or no text.

    >>> tokenizer = train_byte_pair(["low lower lowest"], vocab_size=258)
    >>> [tokenizer.tokens[i] for i in tokenizer.encode("low")]
    [b'low']
    """
    num_merges = vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise ValueError(
            f"vocab_size {vocab_size} is less than 256 bytes and {len(special_tokens)} special tokens"
        )
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(PIECE.findall(text))
    if not pieces:
        raise ValueError("texts hold no text to learn from")
    words = [list(piece.encode()) for piece in pieces]
    return BytePairTokenizer(
        tuple(learned_merges(words, list(pieces.values()), num_merges=num_merges)),
        tuple(special_tokens),
    )


def byte_order() -> list[int]:
    """The bytes as GPT-2 orders them: first those it prints as they are, then the others.

    >>> byte_order()[:3], byte_order()[-3:]
    ([33, 34, 35], [159, 160, 173])
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printed + [byte for byte in range(256) if byte not in printed]


def learned_merges(words: list[list[int]], counts: Sequence[int], *, num_merges: int) -> list[Pair]:
    """Merges in the order of learning, from distinct words (changed in place) and their counts.

    A count that fell leaves its old entry in the heap, found out when it comes to the top; a pair
    knows the words that hold it, so a merge costs as much as the words that it changes.
    """
    order = [place for _, place in sorted((byte, i) for i, byte in enumerate(byte_order()))]
    order += range(256, 256 + num_merges)
    pair_counts: defaultdict[Pair, int] = defaultdict(int)
    holders: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += counts[i]
            holders[pair].add(i)

    def entry(pair: Pair) -> tuple[int, int, int, Pair]:
        return -pair_counts[pair], order[pair[0]], order[pair[1]], pair

    heap = [entry(pair) for pair in pair_counts]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        found = heapq.heappop(heap)
        pair = found[-1]
        if found != (current := entry(pair)):
            if current[0] < 0:
                heapq.heappush(heap, current)
            continue
        token, new = 256 + len(merges), set()
        merges.append(pair)
        for i in holders.pop(pair):
            merged = merge(words[i], pair, token)
            for old in pairwise(words[i]):
                pair_counts[old] -= counts[i]
            for formed in pairwise(merged):
                pair_counts[formed] += counts[i]
                if token in formed:
                    holders[formed].add(i)
                    new.add(formed)
            words[i] = merged
        for formed in new:
            heapq.heappush(heap, entry(formed))
    return merges


def extended(base: BytePairTokenizer, addition: BytePairTokenizer) -> BytePairTokenizer:
    """The union of two vocabularies: the base's merges, then those that make a token new to it.

    As cui2023efficient, section 2.2, extend LLaMA's. Each id of the base stays, but that of a
    special token, which moves behind the new ones.

    >>> base = BytePairTokenizer(((97, 98),))
    >>> extended(base, BytePairTokenizer(((98, 99), (97, 98)))).merges
    ((97, 98), (98, 99))
    """
    merges = list(base.merges)
    ids = {token: i for i, token in enumerate(base.tokens[: 256 + len(merges)])}
    for pair in addition.merges:
        left, right = (addition.tokens[i] for i in pair)
        if left + right not in ids:
            ids[left + right] = 256 + len(merges)
            merges.append((ids[left], ids[right]))
    return BytePairTokenizer(tuple(merges), base.special_tokens)


def mean_initialised(
    table: Float[Tensor, "V D"], *, base: BytePairTokenizer, extended: BytePairTokenizer
) -> Float[Tensor, "W D"]:
    """An embedding table for more tokens: a row is the mean of the rows that spelled it before.

    Raises:
        ValueError: if the table is not the base tokenizer's.
    """
    if len(table) != base.vocab_size:
        raise ValueError(f"table has {len(table)} rows for a vocabulary of {base.vocab_size}")
    tokens = extended.tokens[: 256 + len(extended.merges)]
    rows = torch.stack([table[base.replay(token)].mean(0) for token in tokens])
    return torch.cat((rows, table[256 + len(base.merges) :]))  # the special tokens' rows


def fertility(
    encode: Callable[[str], Sequence[object]],
    texts: Sequence[str],
    *,
    units: Callable[[str], int] = len,
) -> float:
    """Tokens that one unit of text costs: a character, or what `units` counts in a text.

    >>> fertility(str.split, ["so it is", "well"], units=lambda text: text.count(" ") + 1)
    1.0
    """
    return sum(len(encode(text)) for text in texts) / sum(units(text) for text in texts)


def train_word_pieces(words: Mapping[str, int], *, vocab_size: int) -> list[str]:
    """WordPiece: merge the pair of the highest count(ab) / (count(a) count(b)).

    Of two equal scores the first in alphabetical order is taken. A piece that does not begin a word
    bears the mark ##. Google's own trainer was never published; the score is the one that Hugging
    Face's course gives for the likelihood of schuster2012japanese. Each step counts anew, so this is
    for small vocabularies.

    >>> train_word_pieces({"hug": 10, "pug": 5, "hugs": 5}, vocab_size=6)
    ['##g', '##s', '##u', 'h', 'p', '##gs']
    """
    spelled = {word: [word[0], *("##" + letter for letter in word[1:])] for word in words}
    vocabulary = sorted({piece for pieces in spelled.values() for piece in pieces})
    while len(vocabulary) < vocab_size:
        single: Counter[str] = Counter()
        together: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelled.items():
            for piece in pieces:
                single[piece] += words[word]
            for pair in pairwise(pieces):
                together[pair] += words[word]
        if not together:
            break
        scores = {(a, b): count / (single[a] * single[b]) for (a, b), count in together.items()}
        best = min(scores, key=lambda pair: (-scores[pair], pair))
        vocabulary.append(best[0] + best[1].removeprefix("##"))
        spelled = {word: merge(spelled[word], best, vocabulary[-1]) for word in words}
    return vocabulary


def word_pieces(word: str, vocabulary: Set[str], *, unknown: str = "[UNK]") -> list[str]:
    """Cut a word from the left, the longest piece first; a word with a gap is unknown as a whole.

    >>> word_pieces("hugs", {"h", "hug", "##s", "##u", "##g"})
    ['hug', '##s']
    >>> word_pieces("hum", {"h", "hug", "##s", "##u", "##g"})
    ['[UNK]']
    """
    pieces: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in vocabulary), None)
        if end is None:
            return [unknown]
        pieces.append(mark + word[start:end])
        start = end
    return pieces
