"""Finding the passage that answers, and putting it where the model reads: no weight changes.

Page: foundations/prompting_and_retrieval. Papers: robertson2009probabilistic, eq. (3.15) (BM25);
deerwester1990indexing (latent semantic analysis); cormack2009reciprocal (fusion of rankings);
ram2023incontext (a retrieved passage before the prompt); yao2023react, schick2023toolformer (tools).
Left out: embeddings trained for search, approximate nearest neighbours, reranking by a second model.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from llmbook.foundations.decoder import Decoder

# from a text to what is searched

WORD = re.compile(r"[a-z0-9]+")
# A heading of reStructuredText: a line, perhaps under a rule, over a rule of one sign repeated.
HEADING = re.compile(r"^(?:([=\-~^*#\"'+])\1{2,}\n)?(\S.*)\n([=\-~^*#\"'+])\3{2,} *$", re.M)


def search_words(text: str) -> list[str]:
    """Runs of letters and digits in lower case: `os.path` is two words, and punctuation none.

    >>> search_words("How do I use os.path?")
    ['how', 'do', 'i', 'use', 'os', 'path']
    """
    return WORD.findall(text.lower())


def sections(text: str) -> list[tuple[str, str]]:
    r"""Each heading of a reStructuredText document with the text below it, up to the next heading.

    >>> sections("Lists\n=====\nOrdered.\n\nTuples\n------\nFixed.\n")
    [('Lists', '\nOrdered.\n\n'), ('Tuples', '\nFixed.\n')]
    """
    found = list(HEADING.finditer(text))
    ends = [heading.start() for heading in found[1:]] + [len(text)]
    return [
        (heading[2].strip(), text[heading.end() : end])
        for heading, end in zip(found, ends, strict=False)  # a text without headings has none
    ]


def passages(tokens: Sequence[int], *, length: int, overlap: int = 0) -> list[Sequence[int]]:
    """Pieces of equal length, each beginning `overlap` tokens before the last one ends.

    What does not fill a piece at the end is left out.

    Raises:
        ValueError: unless 0 <= overlap < length.

    >>> passages([1, 2, 3, 4, 5, 6], length=4, overlap=2)
    [[1, 2, 3, 4], [3, 4, 5, 6]]
    """
    if not 0 <= overlap < length:
        raise ValueError(f"overlap {overlap} is not between 0 and length {length} - 1")
    starts = range(0, len(tokens) - length + 1, length - overlap)
    return [tokens[start : start + length] for start in starts]


# words: the inverted index and BM25


@dataclass(frozen=True)
class InvertedIndex:
    """For each word the documents that have it and how often, and the length of every document."""

    postings: dict[str, tuple[Int[Tensor, " m"], Float[Tensor, " m"]]]
    lengths: Float[Tensor, " n"]  # words


def inverted_index(documents: Sequence[Sequence[str]]) -> InvertedIndex:
    """Count the words of each document once, so that a query reads only the rows of its own words.

    Raises:
        ValueError: if there are no documents.
    """
    if not documents:
        raise ValueError("documents is empty: an index needs at least one")
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, words in enumerate(documents):
        for word, count in Counter(words).items():
            rows[word].append((number, count))
    postings = {}
    for word, row in rows.items():
        numbers, counts = zip(*row, strict=True)
        postings[word] = torch.tensor(numbers), torch.tensor(counts, dtype=torch.float64)
    lengths = torch.tensor([len(words) for words in documents], dtype=torch.float64)
    return InvertedIndex(postings, lengths)


def rarity(index: InvertedIndex, word: str) -> float:
    """ln(1 + (n - m + 1/2) / (m + 1/2)) for a word in m of n documents, 0 for a word in none.

    The weight of robertson2009probabilistic, eq. (3.3), with 1 added under the logarithm, as search
    engines have it: without it a word in more than half of all documents would count against them.
    """
    if word not in index.postings:
        return 0.0
    n, m = len(index.lengths), len(index.postings[word][0])
    return math.log(1 + (n - m + 0.5) / (m + 0.5))


def bm25(
    index: InvertedIndex, query: Sequence[str], *, k1: float = 1.2, b: float = 0.75
) -> Float[Tensor, " n"]:
    """Score of every document: the sum over the query's words of rarity * f / (f + k1 B).

    robertson2009probabilistic, eq. (3.15): f is how often the word stands in the document and
    B = 1 - b + b length / mean length. A word twice in the query counts twice.

    Raises:
        ValueError: if k1 is negative or b is not between 0 and 1.

    >>> index = inverted_index([["red", "apple"], ["red", "red"], ["pear", "tree"]])
    >>> [round(score, 3) for score in bm25(index, ["red"]).tolist()]
    [0.214, 0.294, 0.0]
    """
    if k1 < 0 or not 0 <= b <= 1:
        raise ValueError(f"k1 {k1} must not be negative, and b {b} must be between 0 and 1")
    scores = torch.zeros_like(index.lengths)
    relative = 1 - b + b * index.lengths / index.lengths.mean()
    for word in query:
        if word in index.postings:
            documents, counts = index.postings[word]
            scores[documents] += rarity(index, word) * counts / (counts + k1 * relative[documents])
    return scores


# vectors: latent semantic analysis, and the model's own states


def tf_idf(index: InvertedIndex) -> Float[Tensor, "words n"]:
    """Sparse matrix of (1 + ln count) * rarity, words in the index's order, columns of length 1."""
    documents = torch.cat([documents for documents, _ in index.postings.values()])
    rows = torch.cat(
        [torch.full_like(d, row) for row, (d, _) in enumerate(index.postings.values())]
    )
    weights = torch.cat(
        [(1 + c.log()) * rarity(index, word) for word, (_, c) in index.postings.items()]
    )
    norms = torch.zeros_like(index.lengths).index_add_(0, documents, weights**2).sqrt()
    size = (len(index.postings), len(index.lengths))
    places = torch.stack([rows, documents])
    weighed = weights / norms[documents]
    matrix = torch.sparse_coo_tensor(places, weighed, size, check_invariants=True)
    coalesced: Tensor = matrix.coalesce()
    return coalesced


def tf_idf_queries(
    index: InvertedIndex, queries: Sequence[Sequence[str]]
) -> Float[Tensor, "q words"]:
    """Queries weighed like the columns of `tf_idf`, not scaled; words that no document has are lost."""
    row = {word: number for number, word in enumerate(index.postings)}
    weighed = torch.zeros(len(queries), len(row), dtype=torch.float64)
    for number, query in enumerate(queries):
        for word, count in Counter(query).items():
            if word in row:
                weighed[number, row[word]] = (1 + math.log(count)) * rarity(index, word)
    return weighed


def latent_space(
    matrix: Float[Tensor, "words n"],
    *,
    rank: int,
    generator: torch.Generator,
    num_iterations: int = 2,
) -> tuple[Float[Tensor, "words rank"], Float[Tensor, " rank"], Float[Tensor, "n rank"]]:
    """U, S and V of the best approximation U diag(S) V^T of this rank (deerwester1990indexing).

    Random vectors, multiplied by the matrix and its transpose a few times, turn towards the leading
    directions (halko2011finding, algorithm 4.4); exact where rank + 10 covers a side of the matrix.
    The matrix may be sparse: only products with thin matrices are taken.

    Raises:
        ValueError: if the rank is not between 1 and the shorter side.
    """
    shorter = min(matrix.shape)
    if not 1 <= rank <= shorter:
        raise ValueError(f"rank {rank} is not between 1 and the shorter side {shorter}")
    width = min(rank + 10, shorter)
    basis = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    for _ in range(num_iterations):
        left = torch.linalg.qr(matrix @ basis)[0]  # words width
        basis = torch.linalg.qr(matrix.T @ left)[0]  # n width
    U, S, V = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return U[:, :rank], S[:rank], (basis @ V.T)[:, :rank]


@torch.no_grad()
def mean_states(
    model: Decoder, texts: Sequence[Sequence[int]], *, batch_size: int = 16
) -> Float[Tensor, "L n D"]:
    """What each layer hands on, as its mean over a text's tokens: L vectors a text.

    Shorter texts are padded behind their end, where no token of theirs looks.
    """
    passing: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, hidden: passing.append(hidden))
        for layer in model.layers
    ]
    means = []
    try:
        for first in range(0, len(texts), batch_size):
            some = [torch.tensor(list(tokens)) for tokens in texts[first : first + batch_size]]
            passing.clear()
            model(pad_sequence(some, batch_first=True))
            for row, tokens in enumerate(some):
                means.append(torch.stack([h[row, : len(tokens)].mean(0) for h in passing]))  # L D
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(means, 1)


def cosines(queries: Float[Tensor, "q D"], others: Float[Tensor, "n D"]) -> Float[Tensor, "q n"]:
    """The cosine of the angle between each query and each of the others; 0 for a vector of zeros."""
    first, second = (
        vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
        for vectors in (queries, others)
    )
    products: Tensor = first @ second.T
    return products


# judging and joining rankings


def rank_of(scores: Float[Tensor, " n"], answer: int) -> int:
    """The place of the answer when documents are sorted by score; every tie counts against it.

    >>> rank_of(torch.tensor([0.1, 0.9, 0.1]), 0)
    3
    """
    return int((scores >= scores[answer]).sum())


def reciprocal_rank_fusion(scores: Sequence[Float[Tensor, " n"]], *, k: int = 60) -> Tensor:
    """Sum over the rankings of 1 / (k + rank): cormack2009reciprocal. Scores need no common unit.

    >>> reciprocal_rank_fusion([torch.tensor([3.0, 1.0]), torch.tensor([0.9, 0.8])]).argmax().item()
    0
    """
    ranks = [(-s).argsort(stable=True).argsort(stable=True) + 1 for s in scores]
    return torch.stack([1 / (k + r.double()) for r in ranks]).sum(0)


# in the prompt


@torch.no_grad()
def continuation_losses(
    model: Decoder, tokens: Int[Tensor, "B T"], *, num_tokens: int, batch_size: int = 4
) -> Float[Tensor, "B num_tokens"]:
    """-ln p of each of the last tokens of a row, given all before it: whatever stands there helps.

    Raises:
        ValueError: if the rows are longer than the model was made for, or all prompt is scored.
    """
    if tokens.shape[1] - 1 > model.config.max_seq_len:
        raise ValueError(
            f"{tokens.shape[1] - 1} tokens do not fit into max_seq_len {model.config.max_seq_len}"
        )
    if not 1 <= num_tokens < tokens.shape[1]:
        raise ValueError(f"num_tokens {num_tokens} is not between 1 and {tokens.shape[1] - 1}")
    rows = []
    for some in tokens.split(batch_size):
        logits = model(some[:, :-1])[:, -num_tokens:]  # B num_tokens V
        wanted = some[:, -num_tokens:]
        rows.append(cross_entropy(logits.transpose(1, 2), wanted, reduction="none"))
    return torch.cat(rows)


# tools

CALL = re.compile(r"call: (\w+)\((.*)\)\s*")
OPERATORS: dict[type, Callable[..., int | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """The value of numbers joined by + - * / and brackets; nothing else is run, whatever it says.

    Raises:
        ValueError: if anything else stands in it, or if it is too large or too deep to evaluate.

    >>> calculate("(12 + 30) * 1e3")
    '42000.0'
    >>> calculate("__import__('os')")
    Traceback (most recent call last):
        ...
    ValueError: expression "__import__('os')" has more in it than numbers, + - * / and brackets
    """
    refused = f"expression {expression!r} has more in it than numbers, + - * / and brackets"

    def value(node: ast.AST) -> int | float:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return number
            case ast.BinOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](value(node.left), value(node.right))
            case ast.UnaryOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](value(node.operand))
        raise ValueError(refused)

    try:
        return str(value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"expression {expression!r}: {error}") from None


def with_tools(
    write: Callable[[str], str],
    prompt: str,
    tools: Mapping[str, Callable[[str], str]],
    *,
    max_calls: int = 8,
) -> str:
    r"""Let a model write line by line; where a line is `call: tool(input)`, run it and show the result.

    The loop of yao2023react: the text so far is all the state there is. An error is shown to the
    model like any result. It ends with a line that is no call, or after `max_calls` of them.

    >>> lines = iter(["call: calculate(6 * 7)\n", "answer: 42\n"])
    >>> print(with_tools(lambda _: next(lines), "6 * 7?\n", {"calculate": calculate}), end="")
    6 * 7?
    call: calculate(6 * 7)
    result: 42
    answer: 42
    """
    text = prompt
    for _ in range(max_calls):
        line = write(text)
        text += line
        call = CALL.fullmatch(line)
        if call is None:
            return text
        name, given = call.groups()
        try:
            result = tools[name](given)
        except (KeyError, ValueError) as error:
            result = f"error: {error}"
        text += f"result: {result}\n"
    return text
