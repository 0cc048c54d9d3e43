"""Exercises with solutions that fold without a script, and cross references to them that hold in the PDF."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_node, solution_node


def visit_solution(self: Any, node: nodes.Element) -> None:
    """Open the fold; its summary is the solution's own title."""
    title = (
        node.pop(0).astext() if node.children and isinstance(node[0], nodes.title) else "Solution"
    )
    ids = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    self.body.append(f'<details class="solution"{ids}><summary>{self.encode(title)}</summary>\n')


def depart_solution(self: Any, node: nodes.Element) -> None:
    """Close the fold."""
    self.body.append("</details>\n")


class PdfLabels(SphinxPostTransform):
    """Give each exercise the label under which sphinx-exercise refers to it in LaTeX."""

    default_priority = 500
    formats = ("latex",)

    def run(self, **_: Any) -> None:
        r"""Put a `\\phantomsection` and the label before every exercise."""
        for kind in (exercise_enumerable_node, exercise_node):
            for node in list(self.document.findall(kind)):
                for label in node.get("ids", []):
                    target = rf"\phantomsection\label{{\detokenize{{{page_of(node)}:{label}}}}}"
                    node.parent.insert(
                        node.parent.index(node), nodes.raw("", target, format="latex")
                    )


class OneId(SphinxPostTransform):
    """Take the ids that sphinx-exercise gives to the bodies of all exercises and solutions alike."""

    default_priority = 500

    def run(self, **_: Any) -> None:
        """An id must be unique on its page."""
        for body in self.document.findall(nodes.section):
            body["ids"] = [
                i for i in body["ids"] if i not in ("exercise-content", "solution-content")
            ]


def page_of(node: nodes.Element | None) -> str:
    """The page that a node of the assembled book came from."""
    while node is not None and not (isinstance(node, nodes.section) and "docname" in node):
        node = node.parent
    return str(node["docname"]) if node is not None else "index"


def use_visitors(app: Sphinx) -> None:
    """Put our visitors in the place of sphinx-exercise's, for HTML (EPUB takes the same)."""
    handlers = app.registry.translation_handlers.setdefault("html", {})
    handlers[solution_node.__name__] = (visit_solution, depart_solution)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the visitors and the transform."""
    app.connect("builder-inited", use_visitors)
    app.add_post_transform(OneId)
    app.add_post_transform(PdfLabels)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
