"""Sphinx extension: pages take their outputs from the stage's cache, and nothing is executed.

Set `nb_execution_mode = "cache"` and `nb_execution_cache_path` to the stage's cache folder.  A page
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
from execution.locking import hold_lock
from execution.outputs import ERROR_TYPE
from execution.pages import name_page_in_kernelspec

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx


class NotExecutedError(ExtensionError):
    """A page whose outputs are not in the cache."""


def client_class(cache: Cache, book: Path) -> type[NotebookClientBase]:
    """The client that MyST-NB asks for outputs: it reads, and cannot run anything."""

    class CachedPage(NotebookClientBase):  # type: ignore[misc]
        """A page with the outputs of the stage's run."""

        def start_client(self) -> None:
            """Fill the notebook with the outputs of the stage's run."""
            if not any(cell.cell_type == "code" for cell in self.notebook.cells):
                return
            name = page_name(Path(str(self.path)), book)
            record = cache.record(name)
            kernelspec = dict(self.notebook.metadata.get("kernelspec", {}))
            name_page_in_kernelspec(self.notebook, name)
            try:
                if record is None:
                    raise KeyError(name)
                _, self._notebook = get_cache(cache.folder).merge_match_into_notebook(self.notebook)
            except (KeyError, OSError, ValueError) as error:
                raise NotExecutedError(
                    f"{self.path}: not executed as it stands; run the execution stage before Sphinx"
                ) from error
            self._notebook.metadata["kernelspec"] = kernelspec

        def eval_variable(self, name: str) -> list[NotebookNode]:
            """The value an expression had when the page ran."""
            if name not in self.glue_data:
                raise ValueError(f"{name!r} was not evaluated when the page was executed")
            output = self.glue_data[name]
            if error := output["data"].get(ERROR_TYPE):
                raise ValueError(f"{error['ename']}: {error['evalue']}")
            return [output]

    return CachedPage


def page_name(path: Path, book: Path) -> str:
    """What the stage and Sphinx call a page."""
    return path.resolve().relative_to(book.resolve()).with_suffix("").as_posix()


def use_cache(app: Sphinx) -> None:
    """Give MyST-NB the client that reads, and keep stages out while Sphinx runs."""
    if app.config.nb_execution_mode != "cache" or not app.config.nb_execution_cache_path:
        raise ExtensionError(
            'execution.sphinx_hook needs nb_execution_mode = "cache" and nb_execution_cache_path'
        )
    cache = Cache(Path(app.config.nb_execution_cache_path))
    myst_nb.core.execute.NotebookClientCache = client_class(cache, Path(app.srcdir))
    if cache.folder.is_dir():
        lock = hold_lock(cache.folder, shared=True)
        app.connect("build-finished", lambda app, exception: os.close(lock))


def mark_page(app: Sphinx, document: nodes.document) -> None:
    """Let the page depend on its executed notebook, and say when it was executed."""
    cache = Cache(Path(app.config.nb_execution_cache_path))
    record = cache.record(app.env.docname)
    if record is None:
        return
    app.env.note_dependency(cache.notebook_path(record.hashkey))
    last = document[-1] if len(document) and isinstance(document[-1], nodes.section) else document
    last += executed_on(record)


def executed_on(record: Record) -> nodes.container:
    """The stamp, the only dated element of a page; search does not index it."""
    stamp: dict[str, Any] = record.stamp
    versions = " and ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    text = (
        f"Executed on {stamp['when']} UTC with {versions}, "
        f"in {record.seconds['wall']:.1f} s ({record.seconds['cpu']:.1f} s of CPU)."
    )
    paragraph = nodes.paragraph("", text, translatable=False)
    return nodes.container("", paragraph, classes=["executed-on", "no-search"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", use_cache)
    app.connect("doctree-read", mark_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
