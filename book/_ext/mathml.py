"""Mathematics as MathML Core, written at build: no script, the same in HTML and EPUB.

An unknown macro is a warning with page and line, so it fails the build.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)
MACROS = {"R": r"\mathbb{R}", "E": r"\mathbb{E}"}
CONVERTER = LatexToMathML(macros=MACROS, xml_namespace=True, fancy_error=False)
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def mathml(tex: str, *, display: bool, location: nodes.Node) -> str:
    """The MathML of a formula; a formula that cannot be set is shown as source and warned about."""
    try:
        found = CONVERTER.convert_with_local_state(tex, displaystyle=display)
    except LatexError as error:
        LOG.warning("formula %r: %s", tex, TERMINAL_COLOURS.sub("", str(error)), location=location)
        return f"<code>{tex}</code>"
    return found.replace("&ApplyFunction;", "⁡")  # a named entity is fatal in the XHTML of an EPUB


def visit_math(self: Any, node: nodes.math) -> None:
    """Inline mathematics."""
    self.body.append(mathml(node.astext(), display=False, location=node))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """A displayed formula with its number and a permanent link."""
    self.body.append('<div class="math-block">')  # its target, which stands before it, has the id
    if node.get("number"):
        self.body.append(f'<span class="eqno">({node["number"]})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(mathml(node.astext(), display=True, location=node) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the renderer under the name that `html_math_renderer` uses."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
