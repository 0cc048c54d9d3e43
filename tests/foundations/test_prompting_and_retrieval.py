"""Retrieval against naive loops, printed numbers and torch; prompts against the model's own passes."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

from llmbook.corpus import documents
from llmbook.foundations.language_modelling import (
    IGNORED,
    adamw,
    fit,
    load,
    next_token_loss,
    split_documents,
)
from llmbook.foundations.prompting_and_retrieval import (
    bm25,
    calculate,
    continuation_losses,
    cosines,
    inverted_index,
    latent_space,
    mean_states,
    passages,
    rank_of,
    rarity,
    reciprocal_rank_fusion,
    search_words,
    sections,
    tf_idf,
    tf_idf_queries,
    with_tools,
)

TITLES = [  # deerwester1990indexing, Table 2: the words that stand in more than one title
    "human interface computer",
    "survey user computer system response time",
    "eps user interface system",
    "system human system eps",
    "user response time",
    "trees",
    "graph trees",
    "graph minors trees",
    "graph minors survey",
]
SMALL = [text.split() for text in ("a b b c", "b c d", "a a a a e f g h", "f", "c c d e")]


@pytest.fixture(scope="module")
def small():
    return load("small")


# from a text to what is searched


def test_words_are_those_of_a_character_by_character_reading():
    text = "Don't panic: `os.path.join` (see PEP 8), naïve_x2"
    naive = "".join(c if c in "abcdefghijklmnopqrstuvwxyz0123456789" else " " for c in text.lower())
    assert search_words(text) == naive.split()


def test_sections_hold_every_line_that_is_no_heading_and_no_preamble():
    tutorial = next(d for d in documents() if d.name == "Doc/tutorial/appetite.rst").text
    (only,) = sections(tutorial)
    assert only[0] == "Whetting Your Appetite"
    assert tutorial.endswith(only[1])
    overlined = "intro\n\n=====\nTitle\n=====\nfirst\n\nNext\n----\nsecond\n"
    assert sections(overlined) == [("Title", "\nfirst\n\n"), ("Next", "\nsecond\n")]
    assert sections("no heading at all") == []


@pytest.mark.parametrize(("n", "length", "overlap"), [(10, 4, 0), (10, 4, 3), (9, 9, 2), (5, 6, 1)])
def test_passages_are_all_windows_at_multiples_of_the_step(n, length, overlap):
    tokens = list(range(n))
    windows = [tokens[i : i + length] for i in range(n - length + 1) if i % (length - overlap) == 0]
    assert passages(tokens, length=length, overlap=overlap) == windows


def test_passages_that_would_never_advance_are_refused():
    with pytest.raises(ValueError, match="overlap 4 is not between 0 and length 4 - 1"):
        passages([1, 2, 3], length=4, overlap=4)


# words


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (2.0, 1.0), (0.0, 0.0)])
def test_bm25_is_the_printed_sum_without_an_index(k1, b):
    """robertson2009probabilistic, eq. (3.15), document by document and word by word."""
    query, n = ["b", "c", "c", "unknown"], len(SMALL)
    mean = sum(map(len, SMALL)) / n
    naive = []
    for document in SMALL:
        score = 0.0
        for word in query:
            m, f = sum(word in d for d in SMALL), document.count(word)
            relative = (1 - b) + b * len(document) / mean
            if f:
                score += f / (k1 * relative + f) * math.log(1 + (n - m + 0.5) / (m + 0.5))
        naive.append(score)
    assert bm25(inverted_index(SMALL), query, k1=k1, b=b).tolist() == pytest.approx(
        naive, rel=1e-12
    )


def test_bm25_by_hand():
    """Two documents of one and three words, the word once in each: f / (f + 1.2 B) at B = 5/8, 11/8."""
    index = inverted_index([["x"], ["x", "y", "z"]])
    weight = math.log(1 + 0.5 / 2.5)
    assert bm25(index, ["x"]).tolist() == pytest.approx([weight / 1.75, weight / 2.65], rel=1e-12)


def test_a_word_counts_more_each_time_but_never_more_than_its_rarity():
    index = inverted_index(
        [["x"] * count + ["y"] * (60 - count) for count in range(1, 51)] + [["z"]] * 9
    )
    scores = bm25(index, ["x"])[:50]
    assert (scores.diff() > 0).all()
    assert (scores.diff().diff() < 0).all()
    assert scores.max() < rarity(index, "x")


@pytest.mark.parametrize("bad", [{"k1": -0.1}, {"b": 1.1}, {"b": -0.1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must not be negative"):
        bm25(inverted_index(SMALL), ["a"], **bad)


def test_an_index_of_nothing_is_refused():
    with pytest.raises(ValueError, match="documents is empty"):
        inverted_index([])


# vectors


def test_tf_idf_is_counted_cell_by_cell():
    index = inverted_index(SMALL)
    vocabulary = list(index.postings)
    naive = torch.zeros(len(vocabulary), len(SMALL), dtype=torch.float64)
    for column, document in enumerate(SMALL):
        for word, count in Counter(document).items():
            m = sum(word in d for d in SMALL)
            weight = math.log(1 + (len(SMALL) - m + 0.5) / (m + 0.5))
            naive[vocabulary.index(word), column] = (1 + math.log(count)) * weight
    torch.testing.assert_close(
        tf_idf(index).to_dense(), naive / naive.norm(dim=0), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(tf_idf_queries(index, SMALL), naive.T, rtol=1e-12, atol=0)
    assert tf_idf_queries(index, [["unknown"]]).abs().sum() == 0


def test_singular_values_and_the_reconstruction_are_those_of_the_first_papers():
    """deerwester1990indexing, appendix (S0); landauer1998introduction, Figure 3."""
    counts = raw_counts(TITLES)
    luck = torch.Generator().manual_seed(0)
    U, S, V = latent_space(counts, rank=9, generator=luck)
    printed = torch.tensor([3.34, 2.54, 2.35, 1.64, 1.50, 1.31, 0.85, 0.56, 0.36])
    assert (S - printed).abs().max() <= 0.005
    U, S, V = latent_space(counts, rank=2, generator=luck)
    rebuilt = U * S @ V.T
    assert rebuilt[ROW["trees"], 8].item() == pytest.approx(0.66, abs=0.005)
    assert rebuilt[ROW["survey"], 8].item() == pytest.approx(0.42, abs=0.0051)


def test_a_query_finds_titles_that_share_no_word_with_it():
    """deerwester1990indexing, Figure 1: c1 to c5 are near "human computer", m1 to m4 are not."""
    U, S, V = latent_space(raw_counts(TITLES), rank=2, generator=torch.Generator().manual_seed(0))
    query = torch.zeros(1, 12, dtype=torch.float64)
    query[0, [ROW["human"], ROW["computer"]]] = 1
    near = cosines(query @ U, V * S)[0]
    assert near[:5].min() > 0.9
    assert near[5:].max() < 0.5


ROW = {word: row for row, word in enumerate(dict.fromkeys(" ".join(TITLES).split()))}


def raw_counts(titles):
    counts = torch.zeros(len(ROW), len(titles), dtype=torch.float64)
    for column, title in enumerate(titles):
        for word in title.split():
            counts[ROW[word], column] += 1
    return counts


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thin_random_start_finds_the_leading_directions_that_lapack_finds(seed):
    """Against torch.linalg.svd of the dense matrix, from a sparse one wider than the start."""
    index = inverted_index([search_words(d.text)[:300] for d in documents()[:80]])
    sparse = tf_idf(index)
    luck = torch.Generator().manual_seed(seed)
    U, S, V = latent_space(sparse, rank=8, generator=luck, num_iterations=25)
    W, T, X = torch.linalg.svd(sparse.to_dense(), full_matrices=False)
    torch.testing.assert_close(S, T[:8], rtol=1e-4, atol=0)
    best = W[:, :8] * T[:8] @ X[:8]
    assert (U * S @ V.T - best).norm() < 0.02 * best.norm()
    torch.testing.assert_close(U.T @ U, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_the_matrix_has_not_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} is not between 1 and the shorter side 3"):
        latent_space(torch.eye(3), rank=rank, generator=torch.Generator())


def test_mean_states_are_what_transformer_layers_hand_on(small):
    """Block by block, without a hook: the decoder's own parts, called by hand."""
    model, tokenizer = small
    texts = [tokenizer.encode(t) for t in ("import os", "A list of numbers, in order.", "def f():")]
    after = []
    with torch.no_grad():
        for tokens in texts:
            later = []
            handle = model.layers[2].register_forward_pre_hook(
                lambda _module, inputs, later=later: later.append(inputs[0])
            )
            model(torch.tensor([tokens]))
            handle.remove()
            after.append(sum(later[0][0]) / len(tokens))
    states = mean_states(model, texts, batch_size=2)  # padded in the first batch
    assert states.shape == (7, 3, 192)
    torch.testing.assert_close(states[1], torch.stack(after))
    assert not any(layer._forward_hooks for layer in model.layers)


def test_cosines_are_torch_s_own_and_zero_for_nothing():
    luck = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 5, generator=luck), torch.randn(4, 5, generator=luck)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(cosines(a, b), expected)
    assert cosines(torch.zeros(1, 5), b).abs().sum() == 0


# rankings


def test_a_rank_is_the_place_in_a_sorted_list_with_ties_before():
    scores = [0.3, 0.9, 0.3, 0.1, 0.9]
    for answer, score in enumerate(scores):
        better = sorted(scores, reverse=True)
        last = len(better) - better[::-1].index(score)
        assert rank_of(torch.tensor(scores), answer) == last


def test_fusion_is_the_printed_sum_and_sees_no_scale():
    first, second = torch.tensor([5.0, 4.0, 1.0]), torch.tensor([0.1, 0.3, 0.2])
    naive = [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62]
    assert reciprocal_rank_fusion([first, second]).tolist() == pytest.approx(naive)
    assert reciprocal_rank_fusion([first.exp(), 7 * second]).tolist() == pytest.approx(naive)
    naive = [1 / 1 + 1 / 3, 1 / 2 + 1 / 1, 1 / 3 + 1 / 2]
    assert reciprocal_rank_fusion([first, second], k=0).tolist() == pytest.approx(naive)


# the page's headline findings, on other questions and seeds than it prints


@pytest.fixture(scope="module")
def library():
    """Sections of the tutorial, the how-tos and a third of the library, headings taken out."""
    kept = [
        (document.name, heading, search_words(body))
        for document in documents()
        if document.kind == "documentation"
        for heading, body in sections(document.text)
    ]
    return [(name, heading, words) for name, heading, words in kept if len(words) >= 30][1::2]


def test_words_find_what_shares_them_and_directions_find_what_does_not(library):
    """On half of the sections, headings as queries, with another rank and seed than the page's."""
    index = inverted_index([words for *_, words in library])
    U, S, V = latent_space(tf_idf(index), rank=128, generator=torch.Generator().manual_seed(9))
    asked = range(0, len(library), 3)
    queries = [search_words(library[i][1]) for i in asked]
    lexical = [bm25(index, query) for query in queries]
    latent = cosines(tf_idf_queries(index, queries) @ U, V * S)
    low, high = [], []
    for i, query, words, vectors in zip(asked, queries, lexical, latent, strict=True):
        total = sum(rarity(index, word) for word in query)
        share = sum(rarity(index, word) for word in query if word in library[i][2]) / (total or 1)
        hits = rank_of(words, i) <= 5, rank_of(vectors, i) <= 5
        (low if share < 0.5 else high if share > 0.8 else []).append(hits)
    lexical_low, latent_low = (sum(hit) / len(low) for hit in zip(*low, strict=True))
    lexical_high, latent_high = (sum(hit) / len(high) for hit in zip(*high, strict=True))
    assert latent_low > lexical_low
    assert lexical_high > latent_high + 0.1


def test_a_passage_lowers_the_loss_of_the_tokens_that_stand_in_it(small):
    """Retrieved from documents that the model never read, on another seed than the page's."""
    model, tokenizer = small
    (end,) = tokenizer.special_ids.values()
    unread = [tokenizer.encode(document.text) for document in split_documents()[1]]
    unread = [tokens for tokens in unread if len(tokens) > 2000][:8]
    pool = [
        (number, 160 * i, piece)
        for number, tokens in enumerate(unread)
        for i, piece in enumerate(passages(tokens, length=160))
    ]
    index = inverted_index([search_words(tokenizer.decode(piece)) for *_, piece in pool])
    luck = torch.Generator().manual_seed(77)
    alone, helped, seen = [], [], []
    for _ in range(24):
        number = int(torch.randint(8, (), generator=luck))
        start = int(torch.randint(160, len(unread[number]) - 80, (), generator=luck))
        read, rest = unread[number][start : start + 32], unread[number][start + 32 : start + 80]
        scores = bm25(index, search_words(tokenizer.decode(read)))
        for place, (n, begin, _piece) in enumerate(pool):
            if n == number and start - 320 < begin < start + 80:
                scores[place] = -1
        found = pool[int(scores.argmax())][2]
        alone.append([end, *read, *rest])
        helped.append([end, *found, *read, *rest])
        before = [set(read + rest[:i]) for i in range(48)]
        seen.append([t in found and t not in b for t, b in zip(rest, before, strict=True)])
    gain = continuation_losses(model, torch.tensor(alone), num_tokens=48) - continuation_losses(
        model, torch.tensor(helped), num_tokens=48
    )
    inside = torch.tensor(seen)
    assert gain[inside].mean() > 0.1
    assert gain[inside].mean() > gain[~inside].mean() + 0.1


def test_facts_that_small_cannot_read_from_its_prompt_four_steps_put_into_its_weights(small):
    """Other words and labels than the page's."""
    model, tokenizer = small
    (end,) = tokenizer.special_ids.values()
    labels = [tokenizer.encode(" False")[0], tokenizer.encode(" True")[0]]
    names = ["socket", "thread", "buffer", "packet", "locale", "decimal", "parser", "logger"]
    truth = [0, 1, 1, 0, 1, 0, 0, 1]
    facts = [tokenizer.encode(f"{n} = {bool(t)}\n") for n, t in zip(names, truth, strict=True)]

    def chosen(reader, prompt):
        rows = [torch.tensor([[*prompt, *tokenizer.encode(f"{name} =")]]) for name in names]
        with torch.no_grad():
            return [int(reader(row)[0, -1, labels].argmax()) for row in rows]

    longest = max(map(len, facts)) + 1
    rows = torch.tensor([[end, *fact] + [end] * (longest - len(fact) - 1) for fact in facts])
    wanted = rows.masked_fill(rows == end, IGNORED)
    learner = copy.deepcopy(model)
    fit(
        learner,
        [rows] * 4,
        optimizer=adamw(learner),
        schedule=[1e-3] * 4,
        loss=lambda reader, tokens: next_token_loss(reader, tokens, labels=wanted),
    )
    told = [token for fact in facts for token in fact]
    right_by_prompt = sum(map(int.__eq__, chosen(model, [end, *told]), truth))
    assert right_by_prompt <= 5
    assert sum(map(int.__eq__, chosen(learner, [end]), truth)) >= 7


# prompts


def test_losses_of_a_continuation_are_those_of_single_passes(small):
    model, tokenizer = small
    rows = torch.tensor(
        [tokenizer.encode(t)[:12] for t in ("a " * 30, "def f(x):\n    return x" * 9)]
    )
    losses = continuation_losses(model, rows, num_tokens=5, batch_size=1)
    for row in range(2):
        for place in range(7, 12):
            with torch.no_grad():
                logits = model(rows[row : row + 1, :place])[0, -1]
            expected = cross_entropy(logits, rows[row, place])
            assert losses[row, place - 7].item() == pytest.approx(expected.item(), abs=1e-4)
    torch.testing.assert_close(continuation_losses(model, rows, num_tokens=5), losses)


def test_a_prompt_longer_than_the_model_is_refused(small):
    rows = torch.zeros(1, 258, dtype=torch.long)
    with pytest.raises(ValueError, match="257 tokens do not fit into max_seq_len 256"):
        continuation_losses(small[0], rows, num_tokens=1)
    with pytest.raises(ValueError, match="num_tokens 9 is not between 1 and 8"):
        continuation_losses(small[0], rows[:, :9], num_tokens=9)


# tools


@pytest.mark.parametrize(
    "expression", ["1 + 2 * 3", "-(4 - 6) / 8", "2 * (3.5 + 1e2)", "7", "1 - -1", "10 / 4 / 5"]
)
def test_arithmetic_is_python_s(expression):
    assert calculate(expression) == str(eval(expression))


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "9 ** 9", "x", "(1).real", "[1]", "'a' * 9", "1 if 1 else 2", "True", "1 < 2",
     "print(1)", "1;2", "", "1 / 0", "~1", "1 // 2"],
)  # fmt: skip
def test_nothing_but_arithmetic_is_run(expression):
    with pytest.raises(ValueError, match="expression"):
        calculate(expression)


@pytest.mark.parametrize(
    "expression", ["1" + 400 * "0" + " / 3", "1+" * 20_000 + "1", "-" * 100_000]
)
def test_a_sum_that_python_cannot_do_is_refused_like_any_other(expression):
    """Whoever writes the line must not be able to stop the loop that runs it."""
    lines = iter([f"call: calculate({expression})\n", "done\n"])
    text = with_tools(lambda _: next(lines), "", {"calculate": calculate})
    assert "result: error: expression" in text
    assert text.endswith("done\n")


def test_the_loop_shows_results_and_errors_and_ends():
    seen = []

    def write(text):
        seen.append(text)
        script = [
            "call: calculate(2 * 21)\n",
            "call: calculate(os)\n",
            "call: search(x)\n",
            "done\n",
        ]
        return script[len(seen) - 1]

    text = with_tools(write, "?\n", {"calculate": calculate})
    lines = text.splitlines()
    assert lines[2] == "result: 42"
    assert lines[4].startswith("result: error: expression 'os'")
    assert lines[6] == "result: error: 'search'"
    assert lines[7] == "done"
    assert seen[1] == "?\ncall: calculate(2 * 21)\nresult: 42\n"  # the model reads what came back


def test_a_model_that_calls_for_ever_is_stopped():
    calls = []
    tools = {"count": lambda given: calls.append(given) or "1"}
    text = with_tools(lambda _: "call: count(x)\n", "", tools, max_calls=3)
    assert len(calls) == text.count("call:") == 3
