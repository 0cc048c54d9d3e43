"""The book's bibliography: read, searched and printed for other tools.

Page: references. The `.bib` files stand in the repository's `bibliography/` and travel in the wheel; pybtex parses
them. An entry of the collection that the book reorganises bears its number (`s091`) among its keywords.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path

from pybtex.backends.plaintext import Backend
from pybtex.database import Entry as PybtexEntry
from pybtex.database import parse_string
from pybtex.database.input.bibtex import LowLevelParser
from pybtex.richtext import Text

PLAIN_TEXT = Backend()  # found once: pybtex looks through all installed packages for it
LINK_FIELDS = ("url", "paper", "report", "repository", "demo", "blog")
BASIS = {
    "read": "the text itself was read",
    "repost": "a repost of the text was read",
    "original": "the original that it translates or reports was read",
    "system": "the system that it is about was read: its README and documentation",
    "primary": "the primary work that it treats was read, not the text itself",
    "title": "the title alone is known",
}


@dataclass(frozen=True)
class Entry:
    """One work. Texts are plain Unicode; a field that the work lacks is empty."""

    key: str
    type: str
    title: str
    authors: tuple[str, ...]  # "Surname, Given", or a name that is not to be split
    fields: dict[str, str] = field(repr=False)
    bibtex: str = field(repr=False)  # as it stands in its file

    @property
    def year(self) -> str:
        """Year of publication, or nothing."""
        return self.fields.get("year", "")

    @property
    def english(self) -> str:
        """The title in English: the rendering of a Chinese one, else the title itself."""
        return self.fields.get("english", self.title)

    @property
    def keywords(self) -> tuple[str, ...]:
        """Pages of the book, and numbers in the collection."""
        return tuple(
            word.strip() for word in self.fields.get("keywords", "").split(",") if word.strip()
        )

    @property
    def collection_ids(self) -> tuple[str, ...]:
        """The entry's numbers in the collection (one that is listed twice has two), or none."""
        return tuple(word for word in self.keywords if re.fullmatch(r"s\d{3}", word))

    @property
    def links(self) -> dict[str, str]:
        """Addresses by the field that holds them."""
        found = {name: self.fields[name] for name in LINK_FIELDS if name in self.fields}
        if "doi" in self.fields:
            found["doi"] = f"https://doi.org/{self.fields['doi']}"
        if "eprint" in self.fields:
            found.setdefault("arXiv", f"https://arxiv.org/abs/{self.fields['eprint']}")
        return found


def folder() -> Path:
    """Where the `.bib` files are: in the checkout if the package runs from one, else in the wheel."""
    checkout = Path(__file__).parents[3] / "bibliography"
    if checkout.is_dir() and (checkout.parent / "pyproject.toml").exists():
        return checkout
    return Path(str(files("llmbook.bibliography").joinpath("files")))


def plain(latex: str) -> str:
    r"""A field's text without LaTeX's escapes.

    >>> plain(r"100\% of {GPT}-3")
    '100% of GPT-3'
    """
    if not set(latex) & set("\\{}~$"):
        return latex
    return str(Text.from_latex(latex).render(PLAIN_TEXT))


def sources(text: str) -> Iterator[tuple[str, str]]:
    """Key and source text of every entry of a `.bib` file."""
    parser = LowLevelParser(text)
    for command, body in parser:
        if command.lower() in ("string", "preamble", "comment"):
            continue
        start = text.rfind("\n@", 0, parser.pos) + 1
        yield body[0], text[start : parser.pos].strip()


@cache
def entries() -> dict[str, Entry]:
    """Every entry by its key, in the order of the files.

    Raises:
        ValueError: if a key stands twice.
    """
    found: dict[str, Entry] = {}
    for path in sorted(folder().glob("*.bib")):
        text = path.read_text(encoding="utf8")
        parsed = parse_string(text, "bibtex").entries
        for key, source in sources(text):
            if key in found:
                raise ValueError(
                    f"key {key!r} stands twice in the bibliography, the second time in {path.name}"
                )
            found[key] = _entry(parsed[key], source)
    return found


def _entry(parsed: PybtexEntry, source: str) -> Entry:
    raw = {*LINK_FIELDS, "archive", "keywords", "related", "doi", "eprint"}
    fields = {
        name.lower(): value if name.lower() in raw else plain(value)
        for name, value in parsed.fields.items()
    }
    authors = tuple(plain(str(name)) for name in parsed.persons.get("author", ()))
    return Entry(parsed.key, parsed.type, fields.get("title", ""), authors, fields, source)


def entry(key: str) -> Entry:
    """The entry of this key.

    Raises:
        KeyError: if there is none; the message lists the nearest keys.
    """
    if key not in entries():
        near = get_close_matches(key.lower(), entries(), n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise KeyError(f"no entry has the key {key!r}{hint}")
    return entries()[key]


def folded(text: str) -> str:
    """A text for comparing: one case, one width, no accents.

    >>> folded("Wölfe ＡＢ 流水线")
    'wolfe ab 流水线'
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def search(words: str) -> list[Entry]:
    """The entries that hold every word in author, title (Chinese or English), key, keywords or annotation.

    Those with the words in title or author come first; otherwise the order is that of the files.
    """
    wanted = folded(words).split()
    if not wanted:
        raise ValueError(f"words {words!r} is empty: name at least one")

    def rank(found: Entry) -> int | None:
        near = folded(" ".join((found.key, found.title, found.english, *found.authors, found.year)))
        far = folded(" ".join((near, *found.keywords, found.fields.get("annotation", ""))))
        if all(word in near for word in wanted):
            return 0
        return 1 if all(word in far for word in wanted) else None

    ranked = [(rank(found), position, found) for position, found in enumerate(entries().values())]
    return [found for place, _, found in sorted((r, p, e) for r, p, e in ranked if r is not None)]
