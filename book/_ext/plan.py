"""Pages to come: `book/plan.toml` names them.

The role `{page}` links a page that exists and prints the title of one that does not; `{planned}` on a chapter's index
lists the chapter's planned pages with the entries of the collection that wait for them.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

import freshness
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

LOG = logging.getLogger(__name__)


def plan(book: Path) -> dict[str, dict[str, str]]:
    """The planned pages that do not exist yet: stem -> title and question."""
    planned = pages_of((book / "plan.toml").read_text(encoding="utf8"))
    return {page["stem"]: page for page in planned if not (book / f"{page['stem']}.md").exists()}


@functools.lru_cache(maxsize=1)
def pages_of(text: str) -> list[dict[str, str]]:
    """The pages that a plan names; every `{page}` asks, so the text is parsed once."""
    planned: list[dict[str, str]] = tomllib.loads(text)["page"]
    return planned


def shown_title(book: Path, stem: str) -> str:
    """What `{page}` shows of a page to come; nothing for one that exists, or that nobody plans."""
    return plan(book).get(stem, {}).get("title", "")


class Page(SphinxRole):
    """A link to a page by its path; a page to come shows its planned title."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """A pending reference where the page exists, else the title in italics."""
        stem = self.text.strip().strip("/")
        freshness.note(self.env, f"title {stem}", shown_title(Path(self.env.srcdir), stem))
        if stem in self.env.found_docs:
            reference = addnodes.pending_xref(
                "", nodes.inline("", stem), refdomain="std", reftype="doc", reftarget=f"/{stem}",
                refexplicit=False, refwarn=True, refdoc=self.env.docname,
            )  # fmt: skip
            return [reference], []
        if Path(self.env.srcdir, f"{stem}.md").exists():  # left out where one page is built alone
            return [nodes.inline("", stem)], []
        planned = plan(Path(self.env.srcdir)).get(stem)
        if planned is None:
            LOG.warning(
                "{page}`%s`: no such page, and none is planned", stem, location=self.get_location()
            )
            return [nodes.literal("", stem)], []
        return [nodes.emphasis("", f"{planned['title']} (to come)", classes=["planned"])], []


class Planned(SphinxDirective):
    """The planned pages of a chapter, each with its question and the entries that wait for it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A definition list; nothing where the chapter is complete."""
        from llmbook.bibliography import entries

        self.env.note_dependency(str(Path(self.env.srcdir) / "plan.toml"))
        chapter = self.arguments[0]
        found = [
            page
            for stem, page in plan(Path(self.env.srcdir)).items()
            if stem.startswith(f"{chapter}/")
        ]
        if not found:
            return []
        waiting: dict[str, list[str]] = {}
        for entry in entries().values():
            homes = [word for word in entry.keywords if "/" in word]
            if entry.collection_ids and homes:
                waiting.setdefault(homes[0], []).append(entry.key)
        lines = []
        for page in found:
            keys = waiting.get(page["stem"], [])
            cited = f" From the collection: {{cite:p}}`{','.join(keys)}`." if keys else ""
            lines += [f"**{page['title']}**", f": {page['question']}{cited}", ""]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the role and the directive."""
    app.setup_extension("freshness")
    freshness.DRAWN["title"] = shown_title
    app.add_role("page", Page())
    app.add_directive("planned", Planned)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
