"""The validation ledger and the verdicts, gathered from the outputs of the pages, drawn anew in every build.

`llmbook.published.rendering` leaves the rows of each page in `env.llmbook_rows`; this extension keeps them true
when pages change, draws `{ledger}` from them, writes `ledger.json` and fails the build on a false key or id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from printing import column_node
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from llmbook.bibliography import entries
from llmbook.published import numbers, shown, shown_as_printed

LOG = logging.getLogger(__name__)
KINDS = {
    "count": "Independent counts: we count, they printed",
    "prediction": "Predictions: made without having seen the printed number",
    "identity": "Identities: the formula of the text that prints the number, recomputed",
}


class Placeholder(nodes.General, nodes.Element):
    """Where the ledger goes once every page was read."""


class Ledger(SphinxDirective):
    """The place of the ledger."""

    def run(self) -> list[nodes.Node]:
        """A placeholder, filled when references are resolved."""
        return [Placeholder()]


class MisprintsPlace(nodes.General, nodes.Element):
    """Where the misprints go once every page was read."""


class Misprints(SphinxDirective):
    """The place of the printed numbers that the book found to be wrong."""

    def run(self) -> list[nodes.Node]:
        """A placeholder, filled when references are resolved."""
        return [MisprintsPlace()]


class TallyPlace(nodes.General, nodes.Element):
    """Where the count of checks and verdicts goes."""


class Tally(SphinxDirective):
    """How many numbers were checked, in one line."""

    def run(self) -> list[nodes.Node]:
        """A placeholder."""
        return [TallyPlace()]


def tally(env: BuildEnvironment) -> nodes.paragraph:
    """One line on what this build checked."""
    checks = {row["id"]: row for row in rows_of(env, "check")}
    kinds = [f"{sum(row['kind'] == kind for row in checks.values())} {name}" for kind, name in
             (("count", "independent counts"), ("identity", "identities"), ("prediction", "predictions"))]  # fmt: skip
    wrong = sum(bool(row["misprint"]) for row in checks.values())
    verdicts = len({row["key"] for row in rows_of(env, "verdict")})
    text = (
        f"In this build: {len(checks)} numbers checked against print ({', '.join(kinds)}), {wrong} of them found wrong "
        f"in print; {verdicts} entries of the collection with a verdict."
    )
    return nodes.paragraph("", text, classes=["tally"])


def rows_of(env: BuildEnvironment, kind: str) -> list[dict[str, Any]]:
    """All rows of one type, each with its page, in the order of the pages' names."""
    rows: dict[str, list[dict[str, Any]]] = getattr(env, "llmbook_rows", {})
    return [
        {**row, "page": page} for page in sorted(rows) for row in rows[page] if row["type"] == kind
    ]


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page's rows before it is read again."""
    getattr(env, "llmbook_rows", {}).pop(docname, None)


def merge(
    app: Sphinx, env: BuildEnvironment, docnames: Iterable[str], other: BuildEnvironment
) -> None:
    """Take over the rows that another reading process found."""
    mine = env.__dict__.setdefault("llmbook_rows", {})
    theirs = getattr(other, "llmbook_rows", {})
    mine.update({name: theirs[name] for name in docnames if name in theirs})


def consistent(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn (so fail) on a key that is not in the bibliography and on a number that nobody checks or excuses."""
    known = {citation.key for citation in env.get_domain("cite").citations}  # type: ignore[attr-defined]
    for row in rows_of(env, "check") + rows_of(env, "verdict"):
        key = row.get("source") or row.get("key")
        if key not in known:
            LOG.warning(
                "%s: key %r is not in the bibliography",
                row.get("id", "verdict"),
                key,
                location=row["page"],
            )


def table(
    head: list[str], body: list[list[nodes.Node]], widths: list[int], css: str
) -> nodes.table:
    """A table of inline nodes."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]

    def line(cells: list[nodes.Node]) -> nodes.row:
        row = nodes.row()
        for cell in cells:
            row += nodes.entry("", nodes.paragraph("", "", cell))
        return row

    group += nodes.thead("", line([nodes.Text(text) for text in head]))
    group += nodes.tbody("", *[line(cells) for cells in body])
    return nodes.table("", group, classes=["longtable", css])


def cited(builder: Builder, source: str, key: str) -> nodes.Node:
    """Author and year of a work, leading to its place in the references."""
    work = entries().get(key)
    names = [name.split(",")[0] for name in work.authors] if work else []
    who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
    text = f"{who or key} {work.year if work else ''}".strip()
    if builder.format == "html" and "references" in builder.env.found_docs:
        return make_refnode(builder, source, "references", f"ref-{key}", nodes.Text(text))
    return nodes.Text(text)


def link(builder: Builder, source: str, page: str) -> nodes.Node:
    """A reference to a page by its title."""
    title = builder.env.titles[page].astext() if page in builder.env.titles else page
    return make_refnode(builder, source, page, "", nodes.Text(title))


def breakable(path: str) -> str:
    """A path that a browser may break after its slash."""
    return path.replace("/", "/\N{ZERO WIDTH SPACE}")


def check_table(builder: Builder, source: str, rows: list[dict[str, Any]]) -> list[nodes.Node]:
    """The checks of one kind."""
    body = [
        [
            nodes.Text(row["what"]),
            nodes.Text(shown(row["ours"])),
            nodes.Text(f"{shown_as_printed(row['theirs'])} {row['unit']}"),
            nodes.Text(f"{row['relative_error']:+.2%}"),
            nodes.Text(f"±{shown(row['tolerance'])}"),
            nodes.inline(
                "", "", cited(builder, source, row["source"]), nodes.Text(f", {row['where']}")
            ),
            make_refnode(
                builder, source, row["page"], "", nodes.Text(row["page"].replace("/", "/ "))
            ),
        ]
        for row in rows
    ]
    head = ["Quantity", "Ours", "Printed", "Difference", "Allowed", "Source", "Page"]
    drawn = table(head, body, [26, 13, 16, 10, 10, 15, 10], "ledger")
    return [column_node(drawn), drawn] if builder.format == "latex" else [drawn]


def section(identifier: str, title: str, *content: nodes.Node) -> nodes.section:
    """A section that the page's contents list."""
    return nodes.section("", nodes.title("", title), *content, ids=[identifier], names=[identifier])


def misprints(builder: Builder, source: str) -> list[nodes.Node]:
    """The printed numbers that pages met and found wrong, each once, by the page that shows it."""
    wrong = {row["id"]: row for row in rows_of(builder.env, "check") if row["misprint"]}
    by_page: dict[str, nodes.bullet_list] = {}
    for row in wrong.values():
        said = (
            f", {row['where']}, prints {shown_as_printed(row['theirs'])} {row['unit']}, "
            f"ours is {shown(row['ours'])}. {row['misprint']}"
        )
        line = [
            nodes.Text(f"{row['what']}: "),
            cited(builder, source, row["source"]),
            nodes.Text(said),
        ]
        exhibits = by_page.setdefault(row["page"], nodes.bullet_list())
        exhibits += nodes.list_item("", nodes.paragraph("", "", *line))
    drawn: list[nodes.Node] = []
    for page, exhibits in by_page.items():
        met = [nodes.Text("Met in "), link(builder, source, page), nodes.Text(":")]
        drawn += [nodes.paragraph("", "", *met), exhibits]
    return drawn


def draw(builder: Builder, source: str) -> list[nodes.Node]:
    """The whole ledger: checks by kind, misprints with their reasons, numbers that no page checks."""
    env = builder.env
    checks, drawn = rows_of(env, "check"), []
    for kind, title in KINDS.items():
        found = [row for row in checks if row["kind"] == kind and not row["misprint"]]
        if found:
            drawn.append(
                section(
                    f"ledger-{kind}",
                    f"{title} ({len(found)})",
                    *check_table(builder, source, found),
                )
            )
    wrong = misprints(builder, source)
    if wrong:
        drawn.append(section("ledger-misprints", "Printed numbers that are wrong", *wrong))
    met = {row["id"] for row in checks}
    open_numbers = [number for id, number in numbers().items() if id not in met]
    if open_numbers:
        waiting = nodes.bullet_list()
        for number in open_numbers:
            place = [nodes.Text(f"{number.what} ("), cited(builder, source, number.source)]
            text = f", {number.where}): {number.unchecked or 'its page is still to come.'}"
            waiting += nodes.list_item("", nodes.paragraph("", "", *place, nodes.Text(text)))
        drawn.append(
            section("ledger-open", f"Numbers that no page checks ({len(open_numbers)})", waiting)
        )
    return drawn


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the ledger in its place."""
    for place in list(doctree.findall(Placeholder)):
        place.replace_self(
            draw(app.builder, docname) or [nodes.paragraph("", "No page has checked a number yet.")]
        )
    for place in list(doctree.findall(TallyPlace)):
        place.replace_self(tally(app.env))
    for place in list(doctree.findall(MisprintsPlace)):
        nothing: list[nodes.Node] = [nodes.paragraph("", "No page has met one yet.")]
        place.replace_self(misprints(app.builder, docname) or nothing)


def write(app: Sphinx, failure: Exception | None) -> None:
    """Write the rows as plain data beside the formats."""
    if failure is None:
        rows = rows_of(app.env, "check") + rows_of(app.env, "verdict")
        target = Path(app.outdir).parent / "ledger.json"
        target.write_text(
            json.dumps(rows, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf8"
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything."""
    app.add_node(Placeholder)
    app.add_node(MisprintsPlace)
    app.add_node(TallyPlace)
    app.add_directive("tally", Tally)
    app.add_directive("ledger", Ledger)
    app.add_directive("misprints", Misprints)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-check-consistency", consistent)
    app.connect("doctree-resolved", fill)
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
