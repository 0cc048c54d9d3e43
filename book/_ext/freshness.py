"""Which pages are read or written again because of what stands elsewhere: those for which it changed, no others.

Sphinx knows that a page changed and that its dependencies did. It does not know of a table drawn from all pages
(a directive calls `note`), of pages filled in from the rows and citations of others (`FILLED`), nor that a doctree
that another format has read is newer than the HTML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

FILLED = ("index", "ledger", "collection", "wrong_numbers", "references")
DRAWN: dict[
    str, Callable[..., str]
] = {}  # how a noted text is made again: by the first word of its name


def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def note(env: BuildEnvironment, name: str, text: str) -> None:
    """Remember what the page that is being read shows of others, under a name of `DRAWN` and its arguments."""
    noted = env.__dict__.setdefault("llmbook_drawn", {})
    noted.setdefault(env.docname, {})[name] = digest(text)


def drawn_now(book: Path, name: str) -> str:
    """What would be shown today under a noted name."""
    maker, *arguments = name.split(" ", 1)
    return DRAWN[maker](book, *arguments)


def read_again(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """The pages that show something that has changed elsewhere."""
    noted: dict[str, dict[str, str]] = getattr(env, "llmbook_drawn", {})
    names = {name for drawn in noted.values() for name in drawn}
    now = {name: digest(drawn_now(Path(env.srcdir), name)) for name in names}
    return [
        page for page, drawn in noted.items() if any(now[name] != drawn[name] for name in drawn)
    ]


def filled_from(env: BuildEnvironment) -> str:
    """Digest of what the filled pages show: rows, titles, citations, the bibliography, printed numbers."""
    root = Path(env.srcdir).parent
    files = [*root.glob("bibliography/*.bib"), *root.glob("src/llmbook/published/*.toml")]
    cited = {
        (reference.docname, target.key)
        for reference in env.get_domain("cite").citation_refs  # type: ignore[attr-defined]
        for target in reference.targets
    }
    rows: dict[str, Any] = getattr(env, "llmbook_rows", {})
    titles = {page: title.astext() for page, title in env.titles.items()}
    texts = {file.name: file.read_text(encoding="utf8") for file in files}
    return digest(json.dumps([rows, titles, texts, sorted(cited)], sort_keys=True))


def filled_stamp(app: Sphinx) -> Path:
    """Where the digest of a format's last build is kept."""
    return Path(app.doctreedir) / f"filled-{app.builder.name}.sha256"


def write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Filled pages if their contents changed; and pages whose doctree is newer than what was written from it."""
    stamp = filled_stamp(app)
    stale = {page for page in FILLED if page in env.found_docs}
    if stamp.exists() and stamp.read_text(encoding="utf8") == filled_from(env):
        stale = set()
    if app.builder.format == "html":
        for page in env.found_docs:
            read = Path(app.doctreedir, f"{page}.doctree")
            written = Path(app.builder.get_outfilename(page))
            if (
                read.exists()
                and written.exists()
                and read.stat().st_mtime > written.stat().st_mtime
            ):
                stale.add(page)
    return sorted(stale)


def remember(app: Sphinx, failure: Exception | None) -> None:
    """Keep the digest of what was written."""
    if failure is None:
        filled_stamp(app).write_text(filled_from(app.env), encoding="utf8")


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget what a page shows of others before it is read again."""
    getattr(env, "llmbook_drawn", {}).pop(docname, None)


def merge(
    app: Sphinx, env: BuildEnvironment, docnames: Iterable[str], other: BuildEnvironment
) -> None:
    """Take over what another reading process has noted."""
    theirs = getattr(other, "llmbook_drawn", {})
    mine = env.__dict__.setdefault("llmbook_drawn", {})
    mine.update({name: theirs[name] for name in docnames if name in theirs})


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything."""
    app.connect("env-get-outdated", read_again)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-updated", write_again, priority=900)  # after bibtex has sorted the citations
    app.connect("build-finished", remember)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
