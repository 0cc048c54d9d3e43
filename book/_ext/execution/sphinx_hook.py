"""Sphinx extension: pages take their outputs from the stage's cache, and nothing is executed.

Set `nb_execution_mode = "cache"` and `nb_execution_cache_path` to the stage's cache folder. A page
that the stage has not executed is an error. `{eval}` shows the values that the page's own run gave.
Each page ends with one container of class `executed-on`: when, in which time, with which versions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import myst_nb.core.execute  # type: ignore[import-untyped]
from docutils import nodes  # type: ignore[import-untyped, unused-ignore]
from jupyter_cache import get_cache  # type: ignore[import-untyped]
from myst_nb.core.execute.base import NotebookClientBase  # type: ignore[import-untyped]
from sphinx.errors import ExtensionError

from execution.cache import Cache, Record
from execution.cells import ERROR_TYPE
from execution.pages import name_page_in_kernelspec
from execution.reports import busy

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx


class CachedPage(NotebookClientBase):  # type: ignore[misc]
    """What MyST-NB asks for outputs: it has those of the stage's run, and cannot run anything."""

    cache: Cache
    book: Path

    def start_client(self) -> None:
        """Fill the notebook with the outputs of the stage's run."""
        if not any(cell.cell_type == "code" for cell in self.notebook.cells):
            return
        path = Path(str(self.path))
        name = path.resolve().relative_to(self.book.resolve()).with_suffix("").as_posix()
        kernelspec = dict(self.notebook.metadata.get("kernelspec", {}))
        name_page_in_kernelspec(self.notebook, name)
        try:
            if self.cache.record(name) is None:
                raise KeyError(name)
            cache = get_cache(self.cache.folder)
            _, self._notebook = cache.merge_match_into_notebook(self.notebook)
        except (KeyError, OSError, ValueError) as error:
            message = "not executed as it stands; run the execution stage before Sphinx"
            raise ExtensionError(f"{path}: {message}") from error
        self._notebook.metadata["kernelspec"] = kernelspec

    def eval_variable(self, name: str) -> list[NotebookNode]:
        """The value an expression had when the page ran."""
        if name not in self.glue_data:
            raise ValueError(f"{name!r} was not evaluated when the page was executed")
        output = self.glue_data[name]
        if error := output["data"].get(ERROR_TYPE):
            raise ValueError(f"{error['ename']}: {error['evalue']}")
        return [output]


def use_cache(app: Sphinx) -> None:
    """Give MyST-NB the client that reads, and keep stages out while Sphinx runs."""
    if app.config.nb_execution_mode != "cache" or not app.config.nb_execution_cache_path:
        raise ExtensionError(
            'execution.sphinx_hook needs nb_execution_mode = "cache" and nb_execution_cache_path'
        )
    CachedPage.cache = Cache(Path(app.config.nb_execution_cache_path))
    CachedPage.book = Path(app.srcdir)
    myst_nb.core.execute.NotebookClientCache = CachedPage
    if CachedPage.cache.folder.is_dir():
        lock = CachedPage.cache.lock(shared=True)
        app.connect("build-finished", lambda app, exception: os.close(lock))


def mark_page(app: Sphinx, document: nodes.document) -> None:
    """Let the page depend on its executed notebook, and say when it was executed."""
    record = CachedPage.cache.record(app.env.docname)
    if record is None:
        return
    app.env.note_dependency(CachedPage.cache.notebook_path(record.hashkey))
    last = document[-1] if len(document) and isinstance(document[-1], nodes.section) else document
    paragraph = nodes.paragraph("", stamp(record), translatable=False)
    last += nodes.container("", paragraph, classes=["executed-on", "no-search"])


def stamp(record: Record) -> str:
    """When, with which versions and how fast: the only dated text of a page."""
    wall, cpu = record.seconds["wall"], record.seconds["cpu"]
    busily = " on a busy machine" if busy(record.seconds) else ""
    return (
        f"Executed on {record.when} UTC with {' and '.join(record.shown_versions)}, "
        f"in {wall:.1f} s{busily} ({cpu:.1f} s of CPU)."
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", use_cache)
    app.connect("doctree-read", mark_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
