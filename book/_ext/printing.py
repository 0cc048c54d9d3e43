"""What only the PDF needs: ragged columns as wide as their contents ask, so that no table sticks out."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

COLUMN = r">{\raggedright\arraybackslash\hspace{0pt}\footnotesize}p{%.3f\linewidth}"
LINE = 100  # characters of a line in the size of tables
GAP = 3  # characters between two columns


def specification(widths: list[float]) -> str:
    """LaTeX's columns for widths in characters.

    >>> specification([46.0, 50.0]).count("linewidth")
    2
    """
    return "".join(COLUMN % (width / LINE) for width in widths)


def widths(cells: list[list[str]]) -> list[float]:
    """Widths in characters: each column's longest word in full, the rest of the line where text is long.

    >>> [round(width) for width in widths([["a b c", "6,658,473,984"], ["one two three " * 9, "1"]])]
    [80, 14]
    """
    columns = list(zip(*cells, strict=True))
    least = [
        max(1.04 * length(word) + 0.5 for text in column for word in [*text.split(), "x"])
        for column in columns
    ]
    asked = [max(length(text) for text in column) for column in columns]
    wish = [max(0.0, want - low) ** 0.7 for want, low in zip(asked, least, strict=True)]
    rest = LINE - GAP * len(columns) - sum(least)
    if rest < 0 or not sum(wish):
        share = min(1.0, (LINE - GAP * len(columns)) / sum(least))
        return [low * share for low in least]
    return [low + rest * want / sum(wish) for low, want in zip(least, wish, strict=True)]


def length(text: str) -> float:
    """Characters, Chinese ones twice as wide."""
    return len(text) + sum("⺀" <= char <= "鿿" for char in text)


class Columns(SphinxPostTransform):
    """Give every table its columns."""

    default_priority = 400
    formats = ("latex",)

    def run(self, **_: Any) -> None:
        """Put a column specification before each table that has none."""
        for table in list(self.document.findall(nodes.table)):
            table.parent.insert(table.parent.index(table), column_node(table))


def column_node(table: nodes.table) -> addnodes.tabular_col_spec:
    """The node with which Sphinx tells LaTeX a table's columns."""
    rows = list(table.findall(nodes.row))
    if "longtable" not in table["classes"] and len(rows) > 12:
        table["classes"].append("longtable")
    cells = [[cell.astext() for cell in row.findall(nodes.entry)] for row in rows]
    return addnodes.tabular_col_spec(spec=f"{{{specification(widths(cells))}}}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the transform."""
    app.add_post_transform(Columns)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
