"""The command that packed the frozen corpus: the source folder of CPython 3.11.2 in, three files out.

    python -m llmbook.corpus.making Python-3.11.2 [TARGET_FOLDER]

The folder is the unpacked source release, as python.org offers it and as Debian ships it untouched
(`python3.11_3.11.2.orig.tar.gz`). The same folder gives the same documents, and the same bytes wherever
liblzma compresses alike.

`selection.txt` names what is taken, one pattern a line. Left out of it: the C API, the change logs
(`Doc/whatsnew`), tests, encodings, generated tables, and library modules that are long and seldom read.
"""

import argparse
import hashlib
import lzma
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from llmbook import corpus
from llmbook.corpus import Document

SELECTION_FILE = corpus.FOLDER / "selection.txt"


def release_of(source: Path) -> str:
    """The name of the release in the folder `source`, read from its header.

    Raises:
        ValueError: if there is none.
    """
    header = source / "Include" / "patchlevel.h"
    version = (
        re.search(r'PY_VERSION\s+"(.+)"', header.read_text("utf-8")) if header.exists() else None
    )
    if version is None:
        raise ValueError(
            f"source {source} is no release of CPython: no version in Include/patchlevel.h"
        )
    return f"CPython {version[1]}"


def selected(source: Path, patterns: Iterable[str]) -> tuple[Document, ...]:
    """The files that the patterns match in `source`, ordered by name, blank ones left out.

    Raises:
        ValueError: if a pattern matches no file.
    """
    found = []
    for pattern in patterns:
        paths = list(source.glob(pattern))
        if not paths:
            raise ValueError(f"pattern {pattern} matches no file in {source}")
        for path in paths:
            name, text = path.relative_to(source).as_posix(), path.read_bytes().decode("utf-8")
            found.append(
                Document(name, "documentation" if name.startswith("Doc/") else "library", text)
            )
    return tuple(sorted((d for d in found if d.text.strip()), key=lambda document: document.name))


def holdings(texts: Iterable[Document]) -> str:
    """Documents, characters, words (runs without white space) and UTF-8 bytes, in one line.

    >>> holdings([Document("Lib/this.py", "library", "import this")])
    '1 documents, 11 characters, 2 words, 11 bytes'
    """
    bodies = [document.text for document in texts]
    characters, words = sum(map(len, bodies)), sum(len(body.split()) for body in bodies)
    size = sum(len(body.encode("utf-8")) for body in bodies)
    return f"{len(bodies):,} documents, {characters:,} characters, {words:,} words, {size:,} bytes"


def write_corpus(source: Path, target: Path) -> str:
    """Pack the selected documents, their hash and their licence into `target`; returns what the corpus holds.

    Raises:
        ValueError: if `source` holds another release.
    """
    if release_of(source) != corpus.RELEASE:
        raise ValueError(f"source {source} holds {release_of(source)}, not {corpus.RELEASE}")
    texts = selected(source, SELECTION_FILE.read_text("ascii").split())
    packed = lzma.compress(corpus.serialized(texts), preset=9 | lzma.PRESET_EXTREME)
    digest = hashlib.sha256(packed).hexdigest()
    (target / corpus.CORPUS_FILE.name).write_bytes(packed)
    (target / corpus.HASH_FILE.name).write_text(f"{digest}  {corpus.CORPUS_FILE.name}\n")
    (target / corpus.LICENSE_FILE.name).write_bytes((source / "LICENSE").read_bytes())
    kinds = ("documentation", "library")
    lines = [f"{kind}: {holdings(d for d in texts if d.kind == kind)}" for kind in kinds]
    return "\n".join([*lines, f"{corpus.CORPUS_FILE.name}: {len(packed):,} bytes, sha256 {digest}"])


def main(arguments: list[str]) -> None:
    """Pack the corpus from the command line."""
    parser = argparse.ArgumentParser(description="Pack the frozen corpus.")
    parser.add_argument("source", type=Path, help=f"unpacked source release of {corpus.RELEASE}")
    parser.add_argument("target", type=Path, nargs="?", default=corpus.FOLDER, help="default: here")
    options = parser.parse_args(arguments)
    print(write_corpus(options.source, options.target))


if __name__ == "__main__":
    main(sys.argv[1:])
