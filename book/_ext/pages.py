"""Lists drawn from the pages themselves: the finder of techniques and the table of pages with their reading time.

A page's front matter may name its techniques (`techniques: {name: what it gains, ...}`); a planned page names them
in `plan.toml`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import freshness
import yaml
from docutils import nodes
from plan import plan
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WORDS_PER_MINUTE = 140  # technical prose with formulas
MINUTES_PER_CELL = 0.75
CODE = re.compile(r"^```\{code-cell\}.*?^```", re.M | re.S)


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the top of a page."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.S)
    return yaml.safe_load(found[1]) if found else {}


def title(text: str) -> str:
    """The first heading of a page."""
    found = re.search(r"^# (.+)$", text, re.M)
    return found[1] if found else ""


def minutes(text: str) -> int:
    """Time to read a page once, its cells included.

    >>> minutes("word " * 1400)
    10
    """
    cells = len(CODE.findall(text))
    prose = len(CODE.sub("", text).split())
    return max(1, round(prose / WORDS_PER_MINUTE + cells * MINUTES_PER_CELL))


def chapter_pages(book: Path) -> dict[str, str]:
    """The text of every page of the five chapters, indexes left out."""
    found = {}
    for file in sorted(book.glob("*/**/*.md")):
        stem = file.relative_to(book).with_suffix("").as_posix()
        if not stem.startswith(("_", "api/")) and not stem.endswith("index"):
            found[stem] = file.read_text(encoding="utf8")
    return found


def page_table(book: Path) -> str:
    """Every finished page with its reading time and the number of its cells, as a table in MyST."""
    lines = ["| page | minutes to read | cells |", "|---|---:|---:|"]
    for stem, text in chapter_pages(book).items():
        lines.append(f"| {{page}}`{stem}` | {minutes(text)} | {len(CODE.findall(text))} |")
    return "\n".join(lines)


def finder(book: Path) -> str:
    """Every technique of the book in alphabetical order, those of pages to come too, as a table in MyST."""
    found: dict[str, tuple[str, str]] = {}
    for stem, text in chapter_pages(book).items():
        for name, gain in front_matter(text).get("techniques", {}).items():
            found[name] = (stem, gain)
    for stem, page in plan(book).items():
        for name in page.get("techniques", ()):
            found.setdefault(name, (stem, ""))
    lines = ["| technique | what it gains | page |", "|---|---|---|"]
    lines += [
        f"| {name} | {gain} | {{page}}`{stem}` |"
        for name, (stem, gain) in sorted(found.items(), key=lambda item: item[0].casefold())
    ]
    return "\n".join(lines)


class Drawn(SphinxDirective):
    """A table drawn from all pages: the page that shows it is read again when the table changes."""

    def run(self) -> list[nodes.Node]:
        """The table of the directive's name."""
        table = freshness.DRAWN[self.name](Path(self.env.srcdir))
        freshness.note(self.env, self.name, table)
        return self.parse_text_to_nodes(table)


class Api(SphinxDirective):
    """The reference of a room of the library, one section a module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """What autodoc finds in every module of the room; `ground` is what stands in no room."""
        source = Path(self.env.srcdir).parent / "src" / "llmbook"
        room = self.arguments[0]
        files = [file for file in sorted(source.glob("**/*.py")) if room_of(file, source) == room]
        drawn: list[nodes.Node] = []
        for file in files:
            self.env.note_dependency(str(file))
            name = ".".join(["llmbook", *file.relative_to(source).with_suffix("").parts])
            name = name.removesuffix(".__init__")
            body = self.parse_text_to_nodes(f"```{{eval-rst}}\n.. automodule:: {name}\n```")
            identifier = name.replace(".", "-")
            title = nodes.title("", "", nodes.literal("", name))
            drawn.append(nodes.section("", title, *body, ids=[identifier], names=[name]))
        return drawn


def room_of(file: Path, source: Path) -> str:
    """The room of a module's file; an `__init__` of a room and the package's own have none."""
    rooms = ("costs", "foundations", "data", "training", "inference", "zoo")
    first, *rest = file.relative_to(source).parts
    if first in rooms:
        return first if rest != ["__init__.py"] else ""
    return "" if first in ("__init__.py", "__main__.py", "cli.py") else "ground"


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    app.setup_extension("freshness")
    freshness.DRAWN.update({"page-table": page_table, "finder": finder})
    app.add_directive("page-table", Drawn)
    app.add_directive("finder", Drawn)
    app.add_directive("api", Api)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
