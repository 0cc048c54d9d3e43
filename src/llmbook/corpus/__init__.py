"""The frozen corpus: one text that every page of the book reads, the same on every machine.

Documentation and library sources of CPython 3.11.2 (Python Software Foundation License, LICENSE.txt beside
this file), and the titles of the collection in their own language and in English. `llmbook.corpus.making` is
the command that packed it.

Left out: splitting, shuffling and tokenizing (`llmbook.data`); any other release, for "the text that every
Python has" differs from one to the next and would move every number.
"""

import hashlib
import json
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

RELEASE = "CPython 3.11.2"
FOLDER = Path(__file__).parent
CORPUS_FILE = FOLDER / "cpython-3.11.2.jsonl.xz"  # xz: a quarter smaller than zip
HASH_FILE = FOLDER / "cpython-3.11.2.jsonl.xz.sha256"
LICENSE_FILE = FOLDER / "LICENSE.txt"
TITLES_FILE = FOLDER / "titles.tsv"

Kind = Literal["documentation", "library"]


@dataclass(frozen=True)
class Document:
    """One file of the release: its path in the source folder, its kind, its text."""

    name: str
    kind: Kind
    text: str


@dataclass(frozen=True)
class BilingualTitle:
    """The title of one entry of the collection as it stands there, and in English."""

    entry: str
    title: str
    english: str


@cache
def documents() -> tuple[Document, ...]:
    """All documents of the frozen corpus, ordered by name: first `Doc/…` (reStructuredText), then `Lib/…`.

    Read once in a process.

    Raises:
        ValueError: if the packed file is not the one whose SHA-256 stands beside it.

    >>> tutorial = next(d for d in documents() if d.name == "Doc/tutorial/appetite.rst")
    >>> tutorial.kind
    'documentation'
    >>> "Whetting Your Appetite" in tutorial.text
    True
    """
    return unpacked(
        checked(CORPUS_FILE.read_bytes(), expected=HASH_FILE.read_text("ascii").split()[0])
    )


@cache
def bilingual_titles() -> tuple[BilingualTitle, ...]:
    """The titles of the collection, in its order, each with its English rendering.

    The few that are English from the start stand there twice, the same or nearly so.

    Raises:
        ValueError: if a line of `titles.tsv` lacks a field.

    >>> title = bilingual_titles()[3]
    >>> title.title, title.english
    ('Transformer模型的基础演算', 'The basic arithmetic of Transformer models')
    """
    return read_titles(TITLES_FILE.read_text("utf-8"))


def checked(packed: bytes, *, expected: str) -> bytes:
    """The same bytes, if their SHA-256 is the expected one (hexadecimal).

    Raises:
        ValueError: if it is another.

    >>> checked(b"text", expected="beef")
    Traceback (most recent call last):
        ...
    ValueError: the corpus is damaged: its sha256 begins with 982d9e3e, not beef
    """
    found = hashlib.sha256(packed).hexdigest()
    if found != expected:
        raise ValueError(
            f"the corpus is damaged: its sha256 begins with {found[:8]}, not {expected[:8]}"
        )
    return packed


def serialized(texts: Iterable[Document]) -> bytes:
    r"""Documents as JSON Lines in UTF-8, one line a document: the same documents give the same bytes.

    >>> serialized([Document("Lib/this.py", "library", "pass")])
    b'{"name": "Lib/this.py", "kind": "library", "text": "pass"}\n'
    """
    lines = (json.dumps(vars(document), ensure_ascii=False) + "\n" for document in texts)
    return "".join(lines).encode("utf-8")


def unpacked(packed: bytes) -> tuple[Document, ...]:
    """Documents from JSON Lines compressed by xz: undoes `lzma.compress(serialized(documents))`.

    >>> unpacked(lzma.compress(serialized([Document("Lib/this.py", "library", "pass")])))
    (Document(name='Lib/this.py', kind='library', text='pass'),)
    """
    lines = (
        lzma.decompress(packed).decode("utf-8").split("\n")
    )  # not splitlines: a text may hold U+2028
    return tuple(Document(**json.loads(line)) for line in lines if line)


def read_titles(table: str) -> tuple[BilingualTitle, ...]:
    r"""Titles from a table of three tab-separated columns under the heading line `entry title english`.

    >>> read_titles("entry\ttitle\tenglish\ns999\t标题\tA title\n")
    (BilingualTitle(entry='s999', title='标题', english='A title'),)
    """
    titles = []
    for number, line in enumerate(table.splitlines()[1:], start=2):
        fields = line.split("\t")
        if len(fields) != 3 or not all(fields):
            raise ValueError(
                f"titles.tsv, line {number}: {line!r} lacks one of entry, title, english"
            )
        titles.append(BilingualTitle(*fields))
    return tuple(titles)
