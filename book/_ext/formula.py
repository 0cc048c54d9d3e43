"""`{formula}`: an equation written once, as an expression that a test can evaluate, and typeset from that.

    ```{formula} eq-state
    M = 4*P + 12*P/R
    ```

The letters are those of the notation page. sympy typesets them unevaluated and in their order; `expressions` gives
the same text to the tests, which evaluate it at random sizes against the function of the library.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.directives.patches import MathDirective

FENCE = re.compile(r"^(`{3,}|:{3,})\{formula\}\s+(\S+)\n(.*?)^\1\s*$", re.M | re.S)
NAME = re.compile(r"\b[A-Za-z_]\w*\b")
FUNCTIONS = {"ceil", "floor", "sqrt", "exp", "log", "max", "min"}


def parsed(side: str) -> Any:
    """A side of an equation as a sympy expression, nothing simplified."""
    from sympy import Symbol, parse_expr  # 0.3 s, for pages that are read

    symbols = {name: Symbol(name) for name in NAME.findall(side) if name not in FUNCTIONS}
    return parse_expr(side.replace("ceil(", "ceiling("), local_dict=symbols, evaluate=False)


def typeset(equation: str) -> str:
    """LaTeX of `left = right`, in the order in which it was written."""
    from sympy import latex

    left, right = equation.split("=", 1)
    return f"{latex(parsed(left.strip()))} = {latex(parsed(right.strip()), order='none')}"


def expressions(page: Path) -> dict[str, str]:
    """The right-hand side of every `{formula}` of a page, by its label."""
    return {
        label: " ".join(line for line in body.splitlines() if not line.startswith(":"))
        .split("=", 1)[1]
        .strip()
        for _, label, body in FENCE.findall(page.read_text(encoding="utf8"))
    }


class Formula(MathDirective):
    """An equation given as an expression."""

    required_arguments = 1
    optional_arguments = 0
    final_argument_whitespace = False
    option_spec: ClassVar[dict[str, Any]] = {"class": directives.class_option}

    def run(self) -> list[nodes.Node]:
        """Typeset the expression and let Sphinx's own directive number and label it."""
        label, equation = self.arguments[0], " ".join(self.content).strip()
        self.options["label"] = label
        self.arguments = []
        source, line = self.get_source_info()
        self.content = StringList([typeset(equation)], items=[(source, line)])
        return super().run()


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("formula", Formula)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
