"""The EPUB: valid where Sphinx leaves it invalid. Mathematics is declared, the font travels, sheets are few."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.builders import _epub_base
from sphinx.builders.epub3 import Epub3Builder

UNWANTED_SHEETS = ("mystnb", "sphinx-design", "copybutton", "exercise", "togglebutton")
ITEM = re.compile(r'<item href="([^"]+\.xhtml)"([^>]*?)\s*/>')


class BookBuilder(Epub3Builder):
    """Sphinx's EPUB builder, with `properties="mathml"` on the files that hold mathematics."""

    def build_content(self) -> None:
        """Write content.opf and mend it."""
        super().build_content()
        content = Path(self.outdir) / "content.opf"

        def mend(item: re.Match[str]) -> str:
            file = Path(self.outdir) / item[1]
            needs = (
                file.exists()
                and "<math" in file.read_text(encoding="utf8")
                and "properties" not in item[2]
            )
            return f'<item href="{item[1]}"{item[2]} properties="mathml"/>' if needs else item[0]

        content.write_text(ITEM.sub(mend, content.read_text(encoding="utf8")), encoding="utf8")


def few_sheets(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Drop sheets that only a browser understands (nested rules)."""
    if app.builder.name == "epub" and "css_files" in context:
        context["css_files"] = [
            sheet
            for sheet in context["css_files"]
            if not any(word in str(sheet) for word in UNWANTED_SHEETS)
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Put the builder in the place of Sphinx's."""
    _epub_base.MEDIA_TYPES[".woff2"] = "font/woff2"
    app.add_builder(BookBuilder, override=True)
    app.connect("html-page-context", few_sheets)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
