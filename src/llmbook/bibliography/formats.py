"""An entry as BibTeX, RIS, CSL-JSON or plain text.

Page: references. BibTeX is the file's own text, byte for byte: a reprint would lose its escapes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmbook.bibliography import Entry

CSL_TYPES = {
    "article": "article-journal", "inproceedings": "paper-conference", "misc": "article", "online": "webpage",
    "techreport": "report", "book": "book",
}  # fmt: skip
RIS_TYPES = {
    "article": "JOUR", "inproceedings": "CPAPER", "misc": "GEN", "online": "ELEC", "techreport": "RPRT", "book": "BOOK",
}  # fmt: skip


def container(entry: Entry) -> str:
    """Journal, proceedings or site that carries the work."""
    for name in ("journal", "booktitle", "howpublished", "institution", "publisher"):
        if name in entry.fields:
            return entry.fields[name]
    return ""


def bibtex(found: Sequence[Entry]) -> str:
    """The entries as they stand in the book's files."""
    return "\n\n".join(entry.bibtex for entry in found)


def text(found: Sequence[Entry]) -> str:
    """One reference a line, for reading."""
    return "\n".join(_reference(entry) for entry in found)


def _reference(entry: Entry) -> str:
    rendered = f" [{entry.english}]" if entry.english != entry.title else ""
    where = next(iter(entry.links.values()), "")
    authors = "; ".join(entry.authors[:5]) + (" et al." if len(entry.authors) > 5 else "")
    parts = (authors, f"{entry.title}{rendered}", container(entry), entry.year, where)
    return ". ".join(part.rstrip(".") for part in parts if part) + "."


def csl(entry: Entry) -> dict[str, Any]:
    """One entry as a CSL-JSON object."""
    found: dict[str, Any] = {
        "id": entry.key,
        "type": CSL_TYPES.get(entry.type, "document"),
        "title": entry.title,
    }
    if entry.authors:
        found["author"] = [
            dict(zip(("family", "given"), name.split(", ", 1), strict=False))
            if ", " in name
            else {"literal": name}
            for name in entry.authors
        ]
    optional = {
        "issued": {"date-parts": [[int(entry.year)]]} if entry.year else None,
        "container-title": container(entry),
        "DOI": entry.fields.get("doi"),
        "URL": next(iter(entry.links.values()), None),
        "language": entry.fields.get("language"),
        "note": entry.english if entry.english != entry.title else None,
        "abstract": entry.fields.get("annotation"),
    }
    return found | {name: value for name, value in optional.items() if value}


def csl_json(found: Sequence[Entry]) -> str:
    """The entries as a CSL-JSON list."""
    return json.dumps([csl(entry) for entry in found], ensure_ascii=False, indent=2)


def ris(found: Sequence[Entry]) -> str:
    """The entries in RIS."""
    return "\n".join(_ris(entry) for entry in found)


def _ris(entry: Entry) -> str:
    lines = [("TY", RIS_TYPES.get(entry.type, "GEN")), ("ID", entry.key), ("TI", entry.title)]
    if entry.english != entry.title:
        lines.append(("TT", entry.english))
    lines += [("AU", name) for name in entry.authors]
    lines += [("PY", entry.year), ("T2", container(entry)), ("DO", entry.fields.get("doi", ""))]
    lines += [("UR", address) for address in entry.links.values()]
    lines += [
        ("LA", entry.fields.get("language", "")),
        ("N2", entry.fields.get("annotation", "")),
        ("ER", ""),
    ]
    return "\n".join(
        f"{tag}  - {value}".rstrip() if tag == "ER" else f"{tag}  - {value}"
        for tag, value in lines
        if value or tag == "ER"
    )


FORMATS = {"bibtex": bibtex, "ris": ris, "csl-json": csl_json, "text": text}
