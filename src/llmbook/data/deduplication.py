r"""Exact and near-duplicate documents: hashes, MinHash signatures, bands, clusters, repeated spans.

Page: data/deduplication. Papers: broder1997resemblance (resemblance of shingle sets),
broder1998minwise (min-wise hashing), leskovec2020mining (chapter 3: bands and their S-curve),
lee2022deduplicating (documents and spans of training corpora).
Left out: buckets on many machines, embeddings (abbas2023semdedup), Bloom filters, SimHash.

Letters: s the similarity of two documents, m the hashes of one, b bands of r rows each, b r <= m.
Papers call a band a bucket and its rows hashes; lee2022deduplicating swaps the letters b and r.
"""

import hashlib
import string
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations
from math import log, log1p
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint32]
Pair = tuple[int, int]  # positions of two documents, the smaller first
Numbers = TypeVar("Numbers", float, NDArray[np.float64])


def normalized(text: str) -> str:
    r"""The text in lower case, every run of white space one space: what counts as equal.

    >>> normalized("Beautiful is better\n  than ugly.")
    'beautiful is better than ugly.'
    """
    return " ".join(text.lower().split())


def first_occurrences(texts: Iterable[str]) -> list[int]:
    """Positions of the texts whose normalized form did not occur before: exact deduplication.

    Compares hashes of 128 bits: among n texts some two collide by chance with probability
    n² / 2^129 at most.

    >>> first_occurrences(["To be", "or not", "to  be"])
    [0, 1]
    """
    seen: dict[bytes, int] = {}
    for position, text in enumerate(texts):
        digest = hashlib.blake2b(normalized(text).encode(), digest_size=16).digest()
        seen.setdefault(digest, position)
    return list(seen.values())


def shingles(text: str, *, num_words: int = 5) -> set[str]:
    """The set of runs of `num_words` words of the normalized text (broder1997resemblance).

    A text of n words has n - num_words + 1 at most; one shorter than a shingle is its only shingle.

    Raises:
        ValueError: if num_words is not positive.

    >>> sorted(shingles("a rose is a rose is a rose", num_words=4))
    ['a rose is a', 'is a rose is', 'rose is a rose']
    """
    if num_words < 1:
        raise ValueError(f"num_words {num_words} is less than 1")
    words = normalized(text).split()
    return {" ".join(words[i : i + num_words]) for i in range(max(1, len(words) - num_words + 1))}


def character_shingles(text: str, *, num_characters: int = 13) -> set[str]:
    """The set of runs of characters of the normalized text without punctuation.

    What SlimPajama compares: its 13-grams are characters (soboleva2023slimpajama, to_hash.py).

    Raises:
        ValueError: if num_characters is not positive.

    >>> sorted(character_shingles("A rose!", num_characters=4))
    [' ros', 'a ro', 'rose']
    """
    if num_characters < 1:
        raise ValueError(f"num_characters {num_characters} is less than 1")
    plain = normalized(text.translate(str.maketrans("", "", string.punctuation)))
    return {plain[i : i + num_characters] for i in range(max(1, len(plain) - num_characters + 1))}


def jaccard(a: AbstractSet[object], b: AbstractSet[object]) -> float:
    """``|A ∩ B| / |A ∪ B|``, the resemblance of two sets (broder1997resemblance, section 2).

    Raises:
        ValueError: if both sets are empty.

    >>> jaccard({1, 2, 3}, {2, 3, 4})
    0.5
    """
    if not a and not b:
        raise ValueError("a and b are both empty: their resemblance is 0 / 0")
    return len(a & b) / len(a | b)


@dataclass(frozen=True)
class Permutations:
    """Permutations x → (a x + b) mod 2^32 of the 32-bit numbers, one for each odd a and any b."""

    multipliers: Hashes
    offsets: Hashes


def random_permutations(generator: np.random.Generator, *, num_hashes: int) -> Permutations:
    """Permutations drawn at random; an odd a has an inverse modulo 2^32, so no two numbers collide.

    The family of datasketch 2.0; version 1 took (a x + b) mod (2^61 - 1) and kept 32 bits, so that
    some did.

    Raises:
        ValueError: if num_hashes is not positive.
    """
    if num_hashes < 1:
        raise ValueError(f"num_hashes {num_hashes} is less than 1")
    a, b = generator.integers(0, 2**32, (2, num_hashes), dtype=np.uint32)
    return Permutations(multipliers=a | np.uint32(1), offsets=b)


def shingle_hashes(of: AbstractSet[str]) -> Hashes:
    """32 bits of each shingle's SHA-1, mixed by MurmurHash3's finalizer, as in datasketch."""
    digests = b"".join(hashlib.sha1(shingle.encode()).digest()[:4] for shingle in of)
    x: Hashes = np.frombuffer(digests, dtype="<u4").astype(np.uint32)
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(multiplier)  # modulo 2^32, as everywhere here
    return x


def signature(hashes: Hashes, permutations: Permutations) -> Hashes:
    """For each of m permutations π the smallest image min π(A): 4 m bytes for any document.

    min π(A) = min π(B) just when the smallest element of A ∪ B lies in A ∩ B, and a random
    permutation makes every element the smallest equally often: probability
    ``|A ∩ B| / |A ∪ B|`` (broder1998minwise, section 1).

    Raises:
        ValueError: if the set is empty.
    """
    if not len(hashes):
        raise ValueError("hashes is empty: the signature of an empty set is not defined")
    a_and_b = zip(permutations.multipliers, permutations.offsets, strict=True)
    return np.array([(a * hashes + b).min() for a, b in a_and_b])


def signatures(texts: Iterable[str], permutations: Permutations, *, num_words: int = 5) -> Hashes:
    """The signatures of the texts' shingle sets, one in a row: (num_documents, num_hashes)."""
    hashes = (shingle_hashes(shingles(text, num_words=num_words)) for text in texts)
    return np.stack([signature(of_one, permutations) for of_one in hashes])


def estimated_jaccard(a: Hashes, b: Hashes) -> float:
    """The share of hashes in which two signatures agree.

    Unbiased, with the standard error sqrt(s (1 - s) / m) of m independent draws.

    Raises:
        ValueError: if the signatures differ in length.

    >>> estimated_jaccard(np.array([7, 2, 5, 1], np.uint32), np.array([7, 3, 5, 1], np.uint32))
    0.75
    """
    if a.shape != b.shape:
        raise ValueError(f"a signature of {a.size} hashes and one of {b.size} cannot be compared")
    return float(np.mean(a == b))


def candidate_pairs(of: Hashes, *, num_bands: int, rows_per_band: int) -> set[Pair]:
    """Pairs of documents whose signatures (rows of `of`) agree in all rows of one band or more.

    Work grows with the documents and with the pairs that share a bucket, not with all pairs; but
    n documents in one bucket are n (n - 1) / 2 pairs.

    Raises:
        ValueError: if there are fewer hashes than the bands take.
    """
    if not 0 < num_bands * rows_per_band <= of.shape[1]:
        raise ValueError(
            f"num_bands {num_bands} x rows_per_band {rows_per_band} not in 1 to {of.shape[1]}"
        )
    pairs: set[Pair] = set()
    for start in range(0, num_bands * rows_per_band, rows_per_band):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for document, hashes in enumerate(of):
            buckets[hashes[start : start + rows_per_band].tobytes()].append(document)
        for bucket in buckets.values():
            pairs.update(combinations(bucket, 2))
    return pairs


def candidate_probability(similarity: Numbers, *, num_bands: int, rows_per_band: int) -> Numbers:
    """The S-curve P(s) = 1 - (1 - s^r)^b: how probably a pair of similarity s becomes a candidate.

    One row agrees with probability s, the r rows of a band with s^r, none of b bands with
    (1 - s^r)^b (leskovec2020mining, section 3.4.2). Assumes independent permutations.

    >>> [round(candidate_probability(s, num_bands=14, rows_per_band=8), 3) for s in (0.7, 0.8)]
    [0.565, 0.924]
    """
    return 1 - (1 - similarity**rows_per_band) ** num_bands


def similarity_found_with(
    probability: float, *, num_bands: float | int, rows_per_band: int
) -> float:
    """(1 - (1 - P)^(1/b))^(1/r), the S-curve solved for the similarity.

    >>> [round(similarity_found_with(p, num_bands=14, rows_per_band=8), 2) for p in (0.1, 0.9)]
    [0.54, 0.79]
    """
    return float((1 - (1 - probability) ** (1 / num_bands)) ** (1 / rows_per_band))


def even_odds_similarity(*, num_bands: int, rows_per_band: int) -> float:
    """(1 - 2^(-1/b))^(1/r): half of the pairs of this similarity become candidates.

    >>> round(even_odds_similarity(num_bands=450, rows_per_band=20), 3)
    0.723
    """
    return similarity_found_with(0.5, num_bands=num_bands, rows_per_band=rows_per_band)


def hashes_needed(similarity: float, *, rows_per_band: int) -> float:
    """Hashes b r = r ln(1/2) / ln(1 - s^r), whose S-curve passes one half at this similarity s.

    The more rows, the steeper: the curve rises from 0.1 to 0.9 while s grows by about 22^(1/r).

    Raises:
        ValueError: if the similarity is not between 0 and 1.

    >>> round(hashes_needed(0.7, rows_per_band=4)), round(hashes_needed(0.7, rows_per_band=20))
    (10, 17367)
    """
    if not 0 < similarity < 1:
        raise ValueError(f"similarity {similarity} is not between 0 and 1")
    return rows_per_band * log(0.5) / log1p(-(similarity**rows_per_band))


def error_areas(threshold: float, *, num_bands: int, rows_per_band: int) -> tuple[float, float]:
    """Areas between the S-curve and a step at the threshold t: ∫₀ᵗ P ds and ∫ₜ¹ (1 - P) ds.

    Shares of false and of missed pairs if similarities were spread evenly over 0 to 1, as in no
    corpus.

    Raises:
        ValueError: if the threshold is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is not between 0 and 1")
    below, above = np.linspace(0, threshold, 1001), np.linspace(threshold, 1, 1001)
    false = candidate_probability(below, num_bands=num_bands, rows_per_band=rows_per_band)
    missed = 1 - candidate_probability(above, num_bands=num_bands, rows_per_band=rows_per_band)
    return float(np.trapezoid(false, below)), float(np.trapezoid(missed, above))


def best_banding(threshold: float, *, num_hashes: int) -> tuple[int, int]:
    """The (num_bands, rows_per_band) of num_hashes at most with the least sum of both error areas.

    >>> best_banding(0.8, num_hashes=128)
    (9, 13)
    """
    choices = [(b, r) for b in range(1, num_hashes + 1) for r in range(1, num_hashes // b + 1)]
    return min(
        choices, key=lambda br: sum(error_areas(threshold, num_bands=br[0], rows_per_band=br[1]))
    )


def near_duplicates(
    texts: Sequence[str], candidates: Iterable[Pair], *, threshold: float, num_words: int = 5
) -> set[Pair]:
    """The candidates whose shingle sets really have a Jaccard similarity of `threshold` or more."""

    def similarity(pair: Pair) -> float:
        a, b = (shingles(texts[document], num_words=num_words) for document in pair)
        return jaccard(a, b)

    return {pair for pair in candidates if similarity(pair) >= threshold}


def clusters(pairs: Iterable[Pair], *, num_documents: int) -> list[list[int]]:
    """Documents linked by pairs, directly or through others (union-find), in order of the first.

    >>> clusters([(1, 4), (0, 1)], num_documents=5)
    [[0, 1, 4], [2], [3]]
    """
    parent = list(range(num_documents))

    def root(document: int) -> int:
        while parent[document] != document:
            parent[document] = parent[parent[document]]  # halves the path for the next search
            document = parent[document]
        return document

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for document in range(num_documents):
        members[root(document)].append(document)
    return list(members.values())


def one_of_each(
    groups: Iterable[Sequence[int]], *, preference: Sequence[float] | Sequence[int]
) -> list[int]:
    """What to keep: the member of each cluster with the highest preference, the first among equals.

    Preferences may be lengths, marks of quality, or numbers drawn by lot.

    >>> one_of_each([[0, 1, 4], [2], [3]], preference=[120, 300, 80, 95, 300])
    [1, 2, 3]
    """
    return [max(group, key=lambda document: preference[document]) for group in groups]


def edited_copy(
    text: str, *, similarity: float, generator: np.random.Generator, num_words: int = 5
) -> str:
    """The text with as many words replaced as bring its similarity to the original near this one.

    A replaced word, w = `num_words` or more from the next, takes away w of n shingles and brings w
    others: k words leave s = (n - k w) / (n + k w) if no shingle is repeated. White space becomes
    single spaces.

    Raises:
        ValueError: if the similarity is not in (0, 1], or the text has no word in w shingles.
    """
    words = text.split()
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity {similarity} is not in (0, 1]")
    if len(words) < 2 * num_words - 1:
        raise ValueError(
            f"text has {len(words)} words, fewer than 2 x num_words - 1 = {2 * num_words - 1}"
        )
    num_shingles = len(words) - num_words + 1
    places = np.arange(num_words - 1, num_shingles, num_words)  # each in num_words shingles
    num_edits = round(num_shingles / num_words * (1 - similarity) / (1 + similarity))
    for place in generator.choice(places, min(num_edits, len(places)), replace=False):
        words[place] = f"edit{generator.integers(2**32):08x}"
    return " ".join(words)


def scattered_edits(text: str, *, share: float, generator: np.random.Generator) -> str:
    """The text with this share of its words replaced, at places drawn at random.

    Raises:
        ValueError: if the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is not in [0, 1]")
    words = text.split()
    for place in generator.choice(len(words), round(share * len(words)), replace=False):
        words[place] = f"edit{generator.integers(2**32):08x}"
    return " ".join(words)


def similarity_after_scattered_edits(share: float, *, num_words: int = 5) -> float:
    """The similarity q / (2 - q) to the original: q = (1 - e)^w of the shingles stay intact.

    A shingle of w words is intact if none of them is among the share e replaced. Assumes a long
    text whose shingles are all different, and new words that occur nowhere else.

    >>> [round(similarity_after_scattered_edits(share), 2) for share in (0.02, 0.05)]
    [0.82, 0.63]
    """
    intact = (1 - share) ** num_words
    return intact / (2 - intact)


def planted(
    texts: Sequence[str],
    *,
    similarities: Sequence[float],
    generator: np.random.Generator,
    num_words: int = 5,
) -> tuple[list[str], set[Pair]]:
    """The texts with edited copies of some of them, one for each similarity, and these pairs."""
    originals = generator.choice(len(texts), len(similarities), replace=False).tolist()
    copies = [
        edited_copy(texts[original], similarity=s, generator=generator, num_words=num_words)
        for original, s in zip(originals, similarities, strict=True)
    ]
    return [*texts, *copies], {(original, len(texts) + i) for i, original in enumerate(originals)}


def precision_and_recall(found: AbstractSet[Pair], truth: AbstractSet[Pair]) -> tuple[float, float]:
    """The share of the found pairs that are true, and of the true pairs that are found.

    Raises:
        ValueError: if either set is empty.

    >>> precision_and_recall({(0, 1), (2, 3)}, {(0, 1), (4, 5), (6, 7), (8, 9)})
    (0.5, 0.25)
    """
    if not found or not truth:
        raise ValueError(
            f"found has {len(found)} pairs and truth {len(truth)}: a share of none is 0 / 0"
        )
    return len(found & truth) / len(found), len(found & truth) / len(truth)


def token_numbers(tokens: Sequence[str]) -> NDArray[np.int64]:
    """Each token's place in the alphabet of the tokens.

    >>> token_numbers("banana").tolist()
    [1, 0, 2, 0, 2, 0]
    """
    place = {token: number for number, token in enumerate(sorted(set(tokens)))}
    return np.array([place[token] for token in tokens], np.int64)


def suffix_array(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Start positions of all suffixes of token numbers in their order, by doubling.

    Suffixes ordered by their first h numbers are ordered by 2 h, if each is compared by its own
    rank and by that of the suffix h further on: log2(longest repeat) sorts (manber1993suffix).

    >>> suffix_array(token_numbers("banana")).tolist()
    [5, 3, 1, 0, 4, 2]
    """
    rank, h = numbers.copy(), 1
    while True:
        past_the_end = np.zeros(min(h, len(rank)), np.int64)
        further_on = np.append(rank[h:] + 1, past_the_end)
        both = rank * (len(rank) + 1) + further_on
        order = np.argsort(both)
        steps = np.diff(both[order]) != 0
        rank[order] = np.append(0, np.cumsum(steps))
        if steps.all():
            return order
        h *= 2


def repeated_spans(tokens: Sequence[str], *, min_length: int = 50) -> list[range]:
    """Positions of all runs of `min_length` tokens that occurred before, merged where they meet.

    Equal runs begin side by side in the suffix array (lee2022deduplicating, section 4.1).

    Raises:
        ValueError: if min_length is not positive.

    >>> repeated_spans("to be or not to be".split(), min_length=2)
    [range(4, 6)]
    """
    if min_length < 1:
        raise ValueError(f"min_length {min_length} is less than 1")
    numbers = token_numbers(tokens)
    starts = suffix_array(numbers)
    numbers = np.append(numbers, -np.arange(1, min_length + 1))  # an end that equals nothing
    equal = np.ones(len(starts) - 1, bool)  # does a run equal that of its neighbour in the array?
    for offset in range(min_length):
        equal &= numbers[starts[1:] + offset] == numbers[starts[:-1] + offset]
    run = np.append(0, np.cumsum(~equal))
    first = np.full(len(starts), len(starts))
    np.minimum.at(first, run, starts)
    later = starts[starts != first[run]]
    edges = np.zeros(len(numbers) + 1, np.int64)
    edges[later] += 1
    edges[later + min_length] -= 1
    bounds = np.flatnonzero(np.diff(np.append(0, np.cumsum(edges)) > 0))
    return [range(int(begin), int(end)) for begin, end in bounds.reshape(-1, 2)]
