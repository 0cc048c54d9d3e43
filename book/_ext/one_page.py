"""`nox -s build -- PAGE`: one page as HTML in seconds, for its author; links to other pages stay text."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]


def main(cache: Path, target: Path, pages: list[str]) -> int:
    """Render the pages alone, with doctrees of their own; only they are read."""
    settings = {
        "include_patterns": [
            *(f"{page}.md" for page in pages),
            "references.md",
        ],  # citations lead there
        "root_doc": pages[0],
        "nb_execution_cache_path": str(cache),
        "suppress_warnings": ["toc", "ref", "myst.xref_missing"],
        "nitpicky": False,
    }
    app = Sphinx(
        ROOT / "book",
        ROOT / "book",
        target,
        target / ".doctrees",
        "html",
        confoverrides=settings,
        status=None,
        freshenv=True,
    )
    app.build()
    return app.statuscode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
