"""Deduplication against print, naive versions, datasketch and the laws of MinHash."""

import itertools
import math
import re
import string
from pathlib import Path

import datasketch
import numpy as np
import pytest
from formula import expressions

from llmbook import corpus
from llmbook.data import deduplication as dd

NUM_HASHES = 128
PAGE = Path(__file__).parents[2] / "book" / "data" / "deduplication.md"


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Sixty documents of the corpus, each cut to its first 600 words."""
    long = (document.text.split() for document in corpus.documents())
    return [" ".join(words[:600]) for words in long if len(words) >= 600][:300:5]


def pair_of_sets(*, shared: int, own: int) -> tuple[set[str], set[str]]:
    """Two sets of similarity shared / (shared + 2 own)."""
    common = {f"common {i}" for i in range(shared)}
    return common | {f"left {i}" for i in range(own)}, common | {f"right {i}" for i in range(own)}


def datasketch_minhash(shingles: set[str], permutations: dd.Permutations) -> datasketch.MinHash:
    """The same set, sketched by the production library with the same permutations."""
    a_and_b = (permutations.multipliers, permutations.offsets)
    sketch = datasketch.MinHash(num_perm=len(a_and_b[0]), permutations=a_and_b, scheme="affine32")
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch


# Printed numbers


def test_fineweb_probabilities_are_those_of_14_bands_of_8_rows():
    printed = {
        0.7: "56",
        0.75: "77",
        0.8: "92",
        0.85: "98.8",
    }  # per cent; penedo2024fineweb, appendix E.1
    for similarity, percent in printed.items():
        ours = 100 * dd.candidate_probability(similarity, num_bands=14, rows_per_band=8)
        half_a_digit = 0.5 * 10 ** -len(percent.partition(".")[2])
        assert ours == pytest.approx(float(percent), abs=half_a_digit)


def test_refinedweb_appendix_holds_for_450_bands_of_20_and_section_3_3_is_swapped():
    as_in_appendix = {"num_bands": 450, "rows_per_band": 20}  # penedo2023refinedweb, appendix G.3.1
    assert dd.candidate_probability(0.75, **as_in_appendix) == pytest.approx(0.76, abs=0.005)
    assert dd.candidate_probability(0.8, **as_in_appendix) == pytest.approx(
        0.994, abs=0.001
    )  # 0.9946, cut off
    assert (
        dd.candidate_probability(0.9, num_bands=20, rows_per_band=450) < 1e-15
    )  # "20 buckets of 450 hashes"


def test_slimpajama_banding_is_the_best_for_128_hashes_at_0_8():
    # soboleva2023slimpajama prints the threshold 0.8; its main.py has bands = 9, range = 13
    assert dd.best_banding(0.8, num_hashes=128) == (9, 13)


def test_rose_example_of_broder():
    # broder1997resemblance, section 2: the 4-shingling of (a, rose, is, a, rose, is, a, rose)
    assert len(dd.shingles("a rose is a rose is a rose", num_words=4)) == 3


def test_one_division_of_9000_hashes_alone_meets_refinedweb_s_two_probabilities():
    meets = [
        (bands, 9000 // bands)
        for bands in range(1, 9001)
        if 9000 % bands == 0
        and round(dd.candidate_probability(0.75, num_bands=bands, rows_per_band=9000 // bands), 2)
        == 0.76
        and dd.candidate_probability(0.8, num_bands=bands, rows_per_band=9000 // bands) >= 0.994
    ]
    assert meets == [(450, 20)]


def test_suffix_array_of_banana_is_lee_s():
    # lee2022deduplicating, section 4.1.1, counts from one
    assert (dd.suffix_array(dd.token_numbers("banana")) + 1).tolist() == [6, 4, 2, 1, 5, 3]


# The page's formulas


@pytest.fixture
def formulas() -> dict[str, str]:
    return expressions(PAGE)


def test_page_formulas_of_the_s_curve_are_the_library_s(
    formulas: dict[str, str], generator: np.random.Generator
):
    for _ in range(50):
        b, r = int(generator.integers(2, 500)), int(generator.integers(1, 20))
        s = float(generator.uniform(0.7, 0.95))
        banding = {"num_bands": b, "rows_per_band": r}
        library = {
            "eq-s-curve": dd.candidate_probability(s, **banding),
            "eq-even-odds": dd.even_odds_similarity(**banding),
            "eq-hashes-needed": dd.hashes_needed(s, rows_per_band=r),
        }
        letters = {"b": b, "r": r, "s": s, "log": math.log}
        assert {label: eval(formulas[label], letters) for label in library} == pytest.approx(
            library
        )


def test_page_formula_of_signature_bytes_is_what_a_signature_holds(
    formulas: dict[str, str], generator: np.random.Generator
):
    for b, r in ((14, 8), (3, 5), (1, 1)):
        permutations = dd.random_permutations(generator, num_hashes=b * r)
        held = dd.signature(dd.shingle_hashes({"some", "shingles"}), permutations).nbytes
        assert eval(formulas["eq-signature-bytes"], {"b": b, "r": r}) == held


@pytest.mark.parametrize("w", [1, 3, 5])
@pytest.mark.parametrize("e", [0.01, 0.03, 0.1, 0.3])
def test_page_formulas_of_edits_are_what_edits_leave(
    formulas: dict[str, str], e: float, w: int, generator: np.random.Generator
):
    words = [f"word{i}" for i in range(40_000)]
    scattered = dd.scattered_edits(" ".join(words), share=e, generator=generator)
    kept = round((1 - e) * len(words))
    in_one_block = " ".join(words[:kept] + [f"new{i}" for i in range(len(words) - kept)])
    before, *after = (
        dd.shingles(t, num_words=w) for t in (" ".join(words), scattered, in_one_block)
    )
    letters = {"e": e, "w": w}
    predicted = [eval(formulas[label], letters) for label in ("eq-scattered", "eq-block")]
    assert [dd.jaccard(before, one) for one in after] == pytest.approx(predicted, abs=0.01)
    assert predicted[0] == pytest.approx(dd.similarity_after_scattered_edits(e, num_words=w))


# Production library


def test_signatures_are_datasketch_s_to_the_bit(texts: list[str], generator: np.random.Generator):
    permutations = dd.random_permutations(generator, num_hashes=NUM_HASHES)
    ours = dd.signatures(texts[:10], permutations)
    for text, signature in zip(texts, ours, strict=False):
        assert np.array_equal(
            datasketch_minhash(dd.shingles(text), permutations).hashvalues, signature
        )


def test_estimate_is_datasketch_s(generator: np.random.Generator):
    permutations = dd.random_permutations(generator, num_hashes=NUM_HASHES)
    for shared in (0, 10, 50, 90):
        a, b = pair_of_sets(shared=shared, own=30)
        theirs = datasketch_minhash(a, permutations).jaccard(datasketch_minhash(b, permutations))
        ours = [dd.signature(dd.shingle_hashes(one), permutations) for one in (a, b)]
        assert dd.estimated_jaccard(*ours) == theirs


def test_candidates_are_what_datasketch_s_index_returns(
    texts: list[str], generator: np.random.Generator
):
    many, _ = dd.planted(texts, similarities=[0.5, 0.6, 0.7, 0.8, 0.9] * 4, generator=generator)
    permutations = dd.random_permutations(generator, num_hashes=NUM_HASHES)
    sketches = [datasketch_minhash(dd.shingles(text), permutations) for text in many]
    index = datasketch.MinHashLSH(num_perm=NUM_HASHES, params=(16, 8))
    for document, sketch in enumerate(sketches):
        index.insert(document, sketch)
    theirs = {
        (low, high) for high, one in enumerate(sketches) for low in index.query(one) if low < high
    }
    ours = dd.candidate_pairs(dd.signatures(many, permutations), num_bands=16, rows_per_band=8)
    assert ours == theirs
    assert len(ours) > 5


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.75, 0.9])
def test_best_banding_is_the_one_datasketch_takes(threshold: float):
    index = datasketch.MinHashLSH(threshold=threshold, num_perm=64)
    assert dd.best_banding(threshold, num_hashes=64) == (index.b, index.r)


# Laws


def test_permutations_map_no_two_numbers_to_one(generator: np.random.Generator):
    permutations = dd.random_permutations(generator, num_hashes=8)
    numbers = generator.choice(2**32, 100_000, replace=False).astype(np.uint32)
    for a, b in zip(permutations.multipliers, permutations.offsets, strict=True):
        assert len(np.unique(a * numbers + b)) == len(numbers)


@pytest.mark.parametrize(("shared", "own"), [(20, 90), (100, 50), (160, 20), (190, 5)])
def test_estimate_is_unbiased_with_the_binomial_s_error(
    shared: int, own: int, generator: np.random.Generator
):
    similarity, trials = shared / (shared + 2 * own), 200
    a, b = (dd.shingle_hashes(one) for one in pair_of_sets(shared=shared, own=own))
    estimates = []
    for _ in range(trials):
        permutations = dd.random_permutations(generator, num_hashes=64)
        estimates.append(
            dd.estimated_jaccard(dd.signature(a, permutations), dd.signature(b, permutations))
        )
    error = math.sqrt(similarity * (1 - similarity) / 64)
    assert np.mean(estimates) == pytest.approx(similarity, abs=4 * error / math.sqrt(trials))
    assert np.std(estimates) == pytest.approx(error, rel=4 / math.sqrt(2 * trials))


@pytest.mark.parametrize(("shared", "own"), [(100, 50), (120, 30), (140, 20), (160, 10)])
def test_measured_candidates_follow_the_s_curve(
    shared: int, own: int, generator: np.random.Generator
):
    num_bands, rows_per_band, trials = 6, 5, 1000
    a, b = (dd.shingle_hashes(one) for one in pair_of_sets(shared=shared, own=own))
    found = 0
    for _ in range(trials):
        permutations = dd.random_permutations(generator, num_hashes=num_bands * rows_per_band)
        both = np.stack([dd.signature(a, permutations), dd.signature(b, permutations)])
        found += len(dd.candidate_pairs(both, num_bands=num_bands, rows_per_band=rows_per_band))
    similarity = shared / (shared + 2 * own)
    expected = dd.candidate_probability(
        similarity, num_bands=num_bands, rows_per_band=rows_per_band
    )
    assert found / trials == pytest.approx(
        expected, abs=4 * math.sqrt(expected * (1 - expected) / trials)
    )


@pytest.mark.parametrize(
    ("num_bands", "rows_per_band"), [(1, 1), (10, 1), (1, 10), (14, 8), (450, 20), (93, 15)]
)
@pytest.mark.parametrize("wanted", [0.1, 0.5, 0.99])
def test_pairs_at_the_similarity_found_with_a_probability_are_found_with_it(
    wanted: float, num_bands: int, rows_per_band: int
):
    banding = {"num_bands": num_bands, "rows_per_band": rows_per_band}
    similarity = dd.similarity_found_with(wanted, **banding)
    assert dd.candidate_probability(similarity, **banding) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("num_bands", "rows_per_band"), [(10, 1), (14, 8), (450, 20)])
def test_half_of_the_pairs_at_the_even_odds_similarity_are_candidates(
    num_bands: int, rows_per_band: int
):
    similarity = dd.even_odds_similarity(num_bands=num_bands, rows_per_band=rows_per_band)
    probability = dd.candidate_probability(
        similarity, num_bands=num_bands, rows_per_band=rows_per_band
    )
    assert probability == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("num_bands", "rows_per_band"), [(10, 1), (14, 8), (450, 20)])
def test_hashes_needed_undo_the_even_odds(num_bands: int, rows_per_band: int):
    similarity = dd.even_odds_similarity(num_bands=num_bands, rows_per_band=rows_per_band)
    assert dd.hashes_needed(similarity, rows_per_band=rows_per_band) == pytest.approx(
        num_bands * rows_per_band
    )


@pytest.mark.parametrize("rows_per_band", [4, 8, 20])
def test_rows_alone_make_the_curve_steep(rows_per_band: int):
    # between P = 0.1 and 0.9 the similarity grows by (ln 10 / ln (10/9))^(1/r), for many bands
    grid = np.linspace(0, 1, 100_001)
    for num_bands in (2_000, 20_000):
        curve = dd.candidate_probability(grid, num_bands=num_bands, rows_per_band=rows_per_band)
        low, high = np.interp([0.1, 0.9], curve, grid)
        assert high / low == pytest.approx(
            (math.log(10) / math.log(10 / 9)) ** (1 / rows_per_band), rel=0.002
        )


@pytest.mark.parametrize(("num_bands", "rows_per_band"), [(14, 8), (450, 20), (93, 15)])
def test_curve_is_steepest_near_the_rule_of_thumb(num_bands: int, rows_per_band: int):
    grid = np.linspace(0, 1, 100_001)
    slope = np.gradient(
        dd.candidate_probability(grid, num_bands=num_bands, rows_per_band=rows_per_band), grid
    )
    rule = (1 / num_bands) ** (1 / rows_per_band)  # leskovec2020mining, 3.4.2; the page says so
    assert rule == pytest.approx(grid[slope.argmax()], abs=0.015)
    there = dd.candidate_probability(rule, num_bands=num_bands, rows_per_band=rows_per_band)
    assert there == pytest.approx(1 - 1 / math.e, abs=0.02)


@pytest.mark.parametrize("rows_per_band", [1, 2, 7])
def test_error_areas_of_one_band_are_those_of_a_power(rows_per_band: int):
    # ∫ s^r ds = s^(r+1) / (r+1)
    false, missed = dd.error_areas(0.8, num_bands=1, rows_per_band=rows_per_band)
    power = rows_per_band + 1
    assert false == pytest.approx(0.8**power / power, rel=1e-4)
    assert missed == pytest.approx(0.2 - (1 - 0.8**power) / power, rel=1e-4)


# Naive versions


def test_exact_duplicates_are_those_of_all_pairs():
    texts = ["One two", "one  TWO\n", "three", "one two three", "Three ", "one two"]
    naive = [i for i, text in enumerate(texts) if not any(same(text, other) for other in texts[:i])]
    assert dd.first_occurrences(texts) == naive == [0, 2, 3]


def same(a: str, b: str) -> bool:
    """Whether two texts differ in case and white space alone."""
    return a.casefold().split() == b.casefold().split()


def test_candidates_are_the_pairs_that_a_comparison_of_all_finds(generator: np.random.Generator):
    signatures = generator.integers(0, 3, (40, 12), dtype=np.uint32)
    naive = {
        (i, j)
        for i, j in itertools.combinations(range(40), 2)
        if any((signatures[i, at : at + 4] == signatures[j, at : at + 4]).all() for at in (0, 4, 8))
    }
    assert dd.candidate_pairs(signatures, num_bands=3, rows_per_band=4) == naive
    assert 0 < len(naive) < 780


def test_clusters_are_the_classes_of_the_transitive_closure(generator: np.random.Generator):
    for _ in range(20):
        pairs = {(int(low), int(high)) for low, high in np.sort(generator.integers(0, 30, (18, 2)))}
        linked = np.eye(30, dtype=bool)
        for low, high in pairs:
            linked[low, high] = linked[high, low] = True
        closure = np.linalg.matrix_power(linked.astype(float), 30) > 0
        classes = sorted({tuple(np.flatnonzero(row).tolist()) for row in closure})
        assert [tuple(members) for members in dd.clusters(pairs, num_documents=30)] == classes


@pytest.mark.parametrize("num_characters", [1, 5, 13])
def test_character_shingles_are_those_of_the_bare_text(texts: list[str], num_characters: int):
    for text in texts[:5]:
        bare = "".join(
            character for character in text.lower() if character not in string.punctuation
        )
        bare = re.sub(r"\s+", " ", bare).strip()
        naive = {
            "".join(run) for run in zip(*(bare[i:] for i in range(num_characters)), strict=False)
        }
        assert dd.character_shingles(text, num_characters=num_characters) == naive


def test_scattered_edits_replace_this_share_of_the_words(generator: np.random.Generator):
    words = [f"word{i}" for i in range(1000)]
    for share in (0.0, 0.013, 0.5, 1.0):
        edited = dd.scattered_edits(" ".join(words), share=share, generator=generator).split()
        assert sum(old != new for old, new in zip(words, edited, strict=True)) == 1000 * share


def test_suffixes_of_an_alphabet_stand_in_its_order():
    assert dd.suffix_array(dd.token_numbers("abcdef")).tolist() == [0, 1, 2, 3, 4, 5]
    assert dd.suffix_array(dd.token_numbers("aaaa")).tolist() == [3, 2, 1, 0]
    assert dd.suffix_array(dd.token_numbers("a")).tolist() == [0]


def test_suffixes_stand_in_order(generator: np.random.Generator):
    tokens = [str(token) for token in generator.integers(0, 3, 60)]
    suffixes = [tokens[start:] for start in dd.suffix_array(dd.token_numbers(tokens))]
    assert all(before < after for before, after in itertools.pairwise(suffixes))
    assert sorted(len(suffix) for suffix in suffixes) == list(range(1, 61))


@pytest.mark.parametrize("min_length", [1, 2, 3, 5])
def test_repeated_spans_are_those_of_all_pairs_of_positions(
    min_length: int, generator: np.random.Generator
):
    for _ in range(30):
        tokens = [str(token) for token in generator.integers(0, 3, 25)]
        covered = set()
        for earlier, later in itertools.combinations(range(len(tokens) - min_length + 1), 2):
            if tokens[earlier : earlier + min_length] == tokens[later : later + min_length]:
                covered |= set(range(later, later + min_length))
        spans = dd.repeated_spans(tokens, min_length=min_length)
        assert {position for span in spans for position in span} == covered
        assert all(before.stop < after.start for before, after in itertools.pairwise(spans))


def test_copied_passage_of_50_tokens_is_found_and_one_of_49_is_not():
    words = [f"word{i}" for i in range(300)]
    assert dd.repeated_spans([*words, *words[100:150]]) == [range(300, 350)]
    assert dd.repeated_spans([*words, *words[100:149]]) == []


# Planted near-duplicates


@pytest.mark.parametrize("num_words", [1, 5, 13])
def test_edited_copy_has_the_similarity_that_its_edits_leave(
    num_words: int, generator: np.random.Generator
):
    text = " ".join(f"word{i}" for i in range(2000))
    for similarity in (0.5, 0.75, 0.9, 1.0):
        copy = dd.edited_copy(text, similarity=similarity, generator=generator, num_words=num_words)
        num_edits = sum(a != b for a, b in zip(text.split(), copy.split(), strict=True))
        num_shingles, broken = 2000 - num_words + 1, num_edits * num_words
        a, b = (dd.shingles(one, num_words=num_words) for one in (text, copy))
        assert dd.jaccard(a, b) == (num_shingles - broken) / (num_shingles + broken)
        assert dd.jaccard(a, b) == pytest.approx(similarity, abs=num_words / num_shingles)


def test_pipeline_finds_what_a_comparison_of_all_pairs_finds(
    texts: list[str], generator: np.random.Generator
):
    similarities = [0.6, 0.75, 0.78, 0.83, 0.86] + [0.95] * 15
    many, truth = dd.planted(texts, similarities=similarities, generator=generator)
    sets = [dd.shingles(text) for text in many]
    all_pairs = itertools.combinations(range(len(many)), 2)
    naive = {(i, j) for i, j in all_pairs if dd.jaccard(sets[i], sets[j]) >= 0.8}
    permutations = dd.random_permutations(generator, num_hashes=NUM_HASHES)
    candidates = dd.candidate_pairs(
        dd.signatures(many, permutations), num_bands=25, rows_per_band=5
    )
    found = dd.near_duplicates(many, candidates, threshold=0.8)
    assert found == naive  # a pair of 0.83 is missed with probability (1 - 0.83^5)^25, below 10^-5
    assert found < truth  # the rest were planted below 0.8
    groups = dd.clusters(found, num_documents=len(many))
    kept = dd.one_of_each(groups, preference=[-document for document in range(len(many))])
    assert kept == sorted(set(range(len(many))) - {copy for _, copy in found})


def test_recall_on_the_whole_corpus_is_the_mean_of_the_s_curve(generator: np.random.Generator):
    long = [document.text for document in corpus.documents() if len(document.text.split()) > 400]
    many, truth = dd.planted(
        long, similarities=list(np.linspace(0.6, 0.95, 300)), generator=generator
    )
    permutations = dd.random_permutations(generator, num_hashes=112)
    candidates = dd.candidate_pairs(
        dd.signatures(many, permutations), num_bands=14, rows_per_band=8
    )
    exact = np.array(
        [dd.jaccard(dd.shingles(many[low]), dd.shingles(many[high])) for low, high in truth]
    )
    chances = dd.candidate_probability(exact, num_bands=14, rows_per_band=8)
    _, recall = dd.precision_and_recall(candidates, truth)
    # 5 sigma of independent pairs, for all pairs share the permutations and so some of their luck
    assert recall == pytest.approx(
        chances.mean(), abs=5 * math.sqrt((chances * (1 - chances)).sum()) / 300
    )
    assert len(candidates) < 0.001 * math.comb(len(many), 2)


def test_frozen_corpus_holds_no_duplicate_document():
    texts = [document.text for document in corpus.documents()]
    assert dd.first_occurrences(texts) == list(range(len(texts)))


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: dd.shingles("a b", num_words=0), "num_words 0 is less than 1"),
        (lambda g: dd.character_shingles("a", num_characters=0), "num_characters 0 is less than 1"),
        (
            lambda g: dd.scattered_edits("a b", share=1.5, generator=g),
            r"share 1.5 is not in \[0, 1\]",
        ),
        (lambda g: dd.hashes_needed(1.0, rows_per_band=2), "similarity 1.0 is not between 0 and 1"),
        (lambda g: dd.jaccard(set(), set()), "a and b are both empty"),
        (lambda g: dd.random_permutations(g, num_hashes=0), "num_hashes 0 is less than 1"),
        (
            lambda g: dd.signature(
                np.array([], np.uint32), dd.random_permutations(g, num_hashes=2)
            ),
            "is empty",
        ),
        (
            lambda g: dd.estimated_jaccard(np.zeros(2, np.uint32), np.zeros(3, np.uint32)),
            "2 hashes and one of 3",
        ),
        (
            lambda g: dd.candidate_pairs(np.zeros((2, 8), np.uint32), num_bands=3, rows_per_band=3),
            "num_bands 3 x rows_per_band 3 not in 1 to 8",
        ),
        (
            lambda g: dd.error_areas(1.1, num_bands=1, rows_per_band=1),
            "threshold 1.1 is not between 0 and 1",
        ),
        (
            lambda g: dd.edited_copy("a b c", similarity=0.0, generator=g),
            r"similarity 0.0 is not in \(0, 1\]",
        ),
        (
            lambda g: dd.edited_copy("a b c", similarity=0.9, generator=g),
            "text has 3 words, fewer than",
        ),
        (lambda g: dd.precision_and_recall(set(), {(0, 1)}), "found has 0 pairs and truth 1"),
        (lambda g: dd.repeated_spans("aa", min_length=0), "min_length 0 is less than 1"),
    ],
)
def test_errors_name_argument_value_and_rule(call, message: str, generator: np.random.Generator):
    with pytest.raises(ValueError, match=message):
        call(generator)
