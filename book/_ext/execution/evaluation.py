"""The values of a page's `{eval}` expressions, whichever way its cells are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from execution.outputs import plain_bundle
from execution.pages import Page
from execution.reports import CellError


class PageValues:
    """Evaluates expressions where they stand, and once more at the page's end if a name came later.

    `ask` evaluates one in the page's shell and answers as Jupyter's `user_expressions` does.
    """

    def __init__(self, page: Page, ask: Callable[[str], dict[str, Any]]) -> None:
        self._page = page
        self._ask = ask
        self.found: dict[str, dict[str, Any]] = {}

    def evaluate_after(self, cells: int) -> None:
        """Evaluate what stands after so many cells.

        One expression with two values on a page is refused: a reader could not tell which is meant.
        """
        for one in self._page.expressions:
            if one.cells_before == cells:
                value = self._value(one.text)
                if value.get("ename") == "NameError":
                    continue  # perhaps the opening quotes a result from further down
                if self.found.setdefault(one.text, value) != value:
                    what = f"the expression {one.text!r} has two values on this page"
                    raise CellError(cells, None, f"{what} (again in line {one.line})")

    def evaluate_the_rest(self) -> None:
        """Evaluate, with all names bound, what could not be evaluated at its place."""
        for one in self._page.expressions:
            if one.text not in self.found:
                self.found[one.text] = self._value(one.text)

    def _value(self, text: str) -> dict[str, Any]:
        """A mime bundle, or an error: reported only if the page really shows it."""
        value = self._ask(text)
        if value["status"] == "ok":
            return {"status": "ok", "data": plain_bundle(value["data"])}
        return {"status": "error", "ename": value["ename"], "evalue": value["evalue"]}
