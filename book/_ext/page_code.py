"""`nox -s lint`: the cells of every page as Python files with the page's own line numbers, for ruff."""

from __future__ import annotations

import re
import sys
from pathlib import Path

EXPRESSION = re.compile(r"\{eval\}`([^`]+)`")


def cells_only(text: str) -> str:
    r"""The page with every line blank that is not code of a cell, so that line numbers stay.

    >>> cells_only("# Title\n```{code-cell} ipython3\nx = 1\n```\nprose")
    '\n\nx = 1\n\n'
    """
    kept, inside, options = [], False, False
    for line in text.split("\n"):
        if line.startswith("```{code-cell}"):
            inside, keep = True, False
        elif inside and line.startswith("```"):
            inside, options, keep = False, False, False
        elif inside and line == "---":
            options, keep = not options, False
        else:
            keep = inside and not options and not line.startswith(":")
        kept.append(line if keep else "")
    used = [f"print({expression})" for expression in EXPRESSION.findall(text)]  # what prose uses
    return "\n".join([*kept, *used, ""] if used else kept)


def main(book: Path, target: Path) -> None:
    """Write `target/<page>.md.py` for every page with cells."""
    for page in book.glob("**/*.md"):
        text = page.read_text(encoding="utf8")
        if "```{code-cell}" in text:
            file = target / page.relative_to(book).with_suffix(".md.py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(cells_only(text), encoding="utf8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
