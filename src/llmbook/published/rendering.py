"""How a check or a verdict shows in the book: docutils nodes for HTML, PDF and EPUB alike.

An entry point of the wheel hands this to MyST-NB, so it serves any MyST-NB book. docutils is imported only when
a row is drawn: the floor stays light.
"""

from __future__ import annotations

from typing import Any

from llmbook.published import MIME, shown, shown_as_printed

SIGN = {"confirmed": "✓", "corrected": "✎", "not checkable": "–"}


class RowRenderer:
    """MyST-NB's mime renderer for the rows of this package."""

    mime_priority_overrides = (("*", MIME, 1),)

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> Any:
        """Docutils nodes for a row, or None for another type of output."""
        if data.mime_type != MIME:
            return None
        from docutils import nodes

        row = dict(data.content)
        environment = getattr(renderer.renderer, "sphinx_env", None)
        if environment is not None:
            rows = getattr(environment, "llmbook_rows", None)
            if rows is None:
                rows = environment.llmbook_rows = {}
            found = row["rows"] if row["type"] == "checks" else [row]
            rows.setdefault(environment.docname, []).extend(
                {**one, "line": data.line} for one in found
            )
        box = nodes.container(classes=classes(row))
        drawing = (
            renderer.renderer
        )  # MyST's own, so that a row's text may hold mathematics and citations
        with drawing.current_node_context(box, append=False):
            drawing.nested_render_text(markdown(row), data.line or 0)
        return [box]


def classes(row: dict[str, Any]) -> list[str]:
    """CSS classes of a row's box: its type, and what was found."""
    if row["type"] == "verdict":
        found = row["finding"].replace(" ", "-")
    else:
        found = "agrees" if all(one["agrees"] for one in row.get("rows", [row])) else "differs"
    return ["llmbook-row", f"llmbook-{row['type']}", f"found-{found}"]


def markdown(row: dict[str, Any]) -> str:
    """The text of a row's box.

    >>> row = {"type": "verdict", "key": "k", "claim": "A.", "because": "B.", "finding": "confirmed", "ours": ""}
    >>> markdown(row)
    '**✓ Verdict: confirmed.** A. B. {cite:p}`k`'
    """
    if row["type"] == "checks":
        units = {one["unit"] for one in row["rows"]}
        unit = f", {units.pop()}" if len(units) == 1 else ""
        head = [f"| quantity | ours{unit} | printed | where | kind |", "|---|---:|---:|---|---|"]
        return "\n".join([*head, *(table_line(one, with_unit=not unit) for one in row["rows"])])
    if row["type"] == "verdict":
        text = (
            f"**{SIGN[row['finding']]} Verdict: {row['finding']}.** {row['claim']} {row['because']}"
        )
        return f"{text} {{cite:p}}`{row['key']}`"
    sign, relation = ("✓", "agrees with") if row["agrees"] else ("≠", "differs from")
    text = (
        f"**{sign} {row['what']}:** ours {shown(row['ours'])} {relation} printed "
        f"{shown_as_printed(row['theirs'])} {row['unit']} "
        f"({row['where']} of {{cite:t}}`{row['source']}`; {row['kind']})."
    )
    return " ".join(part for part in (text, row["misprint"] or row["note"]) if part)


def table_line(row: dict[str, Any], *, with_unit: bool) -> str:
    """One check as a line of a table; a misprint or a note stands under the quantity."""
    remark = f" ({row['misprint'] or row['note']})" if row["misprint"] or row["note"] else ""
    place = f"{row['where']} {{cite:p}}`{row['source']}`"
    printed = f"{'' if row['agrees'] else '≠ '}{shown_as_printed(row['theirs'])}"
    unit = f" {row['unit']}" if with_unit else ""
    cells = (f"{row['what']}{remark}", f"{shown(row['ours'])}{unit}", printed, place, row["kind"])
    return f"| {' | '.join(cells)} |"
