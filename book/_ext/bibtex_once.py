"""sphinxcontrib-bibtex, doing once what it does again for every list and citation: same output, a book's worth faster.

It formats every entry anew for each page's list, asks all citations of the book for each entry of each list, and
searches the installed packages for a plugin at each citation. A build formats an entry once, and not at all where
an earlier build did and the entry stands unchanged in Sphinx's environment.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pybtex.plugin
from pybtex.database import Entry
from pybtex.style import FormattedEntry
from pybtex.style.formatting import BaseStyle
from sphinx.application import Sphinx
from sphinxcontrib.bibtex.domain import BibtexDomain, _FilterVisitor

Memory = dict[tuple[str, str], tuple[Entry, FormattedEntry]]
FORMATTED: Memory = {}  # by label and key: the entry, and what became of it


class FormatsOnce(BaseStyle):
    """A style that remembers; put it before the style whose work it saves."""

    def format_entry(self, label: str, entry: Entry, bib_data: Any = None) -> FormattedEntry:
        """The entry's reference; made again if it is another entry than the one remembered."""
        known = FORMATTED.get((label, entry.key))
        if known is None or known[0] is not entry:
            known = FORMATTED[label, entry.key] = (
                entry,
                super().format_entry(label, entry, bib_data),
            )
        return known[1]


def remember(app: Sphinx) -> None:
    """Take over what earlier builds formatted: it lies in the environment beside the very entries it came from."""
    for citation in app.env.get_domain("cite").citations:  # type: ignore[attr-defined]
        place = citation.formatted_entry.label, citation.entry.key
        FORMATTED[place] = (citation.entry, citation.formatted_entry)


def pages_by_key(domain: BibtexDomain) -> dict[str, set[str]]:
    """The pages that cite each key."""
    pages: dict[str, set[str]] = {}
    for reference in domain.citation_refs:
        for target in reference.targets:
            pages.setdefault(target.key, set()).add(reference.docname)
    return pages


def filtered_entries(domain: BibtexDomain, where: Any) -> Iterator[tuple[str, Entry]]:
    """The entries that belong to a list, in the order of the files."""
    wanted = domain.bibliographies[where]
    pages = pages_by_key(domain)
    for entry in domain.get_entries(wanted.bibfiles):
        key = wanted.keyprefix + entry.key
        citing = pages.get(key, set())
        filter_ = _FilterVisitor(entry=entry, docname=where.docname, cited_docnames=citing)
        if filter_.visit(wanted.filter_) or entry.key in wanted.keys:
            yield key, entry


def setup(app: Sphinx) -> dict[str, Any]:
    """Put the faster parts in their places."""
    app.setup_extension("sphinxcontrib.bibtex")
    BibtexDomain.get_filtered_entries = filtered_entries
    if not hasattr(pybtex.plugin.find_plugin, "cache_info"):
        pybtex.plugin.find_plugin = functools.cache(pybtex.plugin.find_plugin)
    app.connect("builder-inited", remember, priority=900)  # after bibtex has read its files
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
