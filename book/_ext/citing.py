"""Citing: the style of references, what stands under each, chapter lists, and the collection in its own order.

sphinxcontrib-bibtex and pybtex do the work. This adds the English rendering and the further links to a reference,
the annotation with its basis, "cited on", a BibTeX source to copy, and the directives `{chapter-references}` and
`{collection}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pybtex.plugin
from bibtex_once import FormatsOnce
from docutils import nodes
from ledger import rows_of
from pybtex.database import Entry as PybtexEntry
from pybtex.richtext import HRef, Text
from pybtex.style.formatting.unsrt import Style as UnsrtStyle
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.template import FieldIsMissing, field, href, join, node, optional, sentence, words
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from llmbook.bibliography import BASIS, Entry, entries, folder

REFERENCES = "references"  # the page of the full list
MOST_NAMES = 10
FURTHER_LINKS = ("paper", "report", "repository", "blog", "demo")
SECTIONS = {
    "notes": "Notes",
    "introductions": "Introductions",
    "training": "Training",
    "inference": "Inference",
    "repositories": "Repositories",
    "data": "Data",
    "paper-reading": "Reading papers",
}


class KeyLabels(BaseLabelStyle):
    """The label of a reference is its citation key."""

    def format_labels(self, sorted_entries: Iterable[PybtexEntry]) -> Iterator[str]:
        """One label an entry."""
        for entry in sorted_entries:
            yield entry.key


@node
def further_links(children: Any, data: dict[str, Any]) -> Text:
    """The links beyond the first, each under the name of its field."""
    fields = data["entry"].fields
    return Text(", ").join(
        Text(HRef(address, name))
        for name in FURTHER_LINKS
        if name in fields
        for address in fields[name].split()
    )


@node
def some_names(children: Any, data: dict[str, Any], role: str) -> Text:
    """The first names of a role; a list longer than the limit ends in its length."""
    if role not in data["entry"].persons:
        raise FieldIsMissing(role, data["entry"])
    people = data["entry"].persons[role]
    shown = people if len(people) <= MOST_NAMES + 2 else people[:MOST_NAMES]
    parts = [data["style"].format_name(one, False).format_data(data) for one in shown]
    if len(shown) < len(people):
        return Text(Text(", ").join(parts), f" and {len(people) - len(shown)} others")
    return (
        Text(", ").join(parts)
        if len(parts) < 2
        else Text(Text(", ").join(parts[:-1]), " and ", parts[-1])
    )


class Style(FormatsOnce, UnsrtStyle):
    """References with titles as printed, an English rendering in brackets, and all links."""

    default_label_style = KeyLabels
    default_sorting_style = "author_year_title"

    def format_names(self, role: str, as_sentence: bool = True) -> Any:
        """Up to ten names, then how many more: some reports have hundreds of authors."""
        listed = some_names(role)
        return sentence[listed] if as_sentence else listed

    def format_title(self, e: PybtexEntry, which_field: str, as_sentence: bool = True) -> Any:
        """The title unchanged (no lower-casing: titles are Chinese and English), its rendering in brackets."""
        title = join[field(which_field), optional[join[" [", field("english"), "]"]]]
        return sentence[title] if as_sentence else title

    def format_url(self, e: PybtexEntry) -> Any:
        """The address as a link with a short text: it may be long."""
        url = field("url", raw=True)
        return words[href(url)[site(e.fields.get("url", ""))]]

    def format_web_refs(self, e: PybtexEntry) -> Any:
        """Address, further links, arXiv and DOI."""
        return sentence[
            optional[self.format_url(e)],
            optional[further_links],
            optional[self.format_eprint(e)],
            optional[self.format_doi(e)],
        ]


def site(address: str) -> str:
    """The host of an address, for reading.

    >>> site("https://www.zhihu.com/column/c_1")
    'zhihu.com'
    """
    return address.split("://")[-1].split("/")[0].removeprefix("www.")


class ReferenceDetails(SphinxPostTransform):
    """Put under a reference what belongs to it; lists are made at priority 5, links are resolved at 10."""

    default_priority = 6

    def run(self, **_: Any) -> None:
        """Walk the references of the page."""
        domain = self.env.get_domain("cite")
        keys = {
            (citation.bibliography_key.docname, citation.citation_id): citation.key
            for citation in domain.citations  # type: ignore[attr-defined]
        }
        for reference in list(self.document.findall(nodes.citation)):
            page = reference.get("docname", self.env.docname)
            key = next((keys[page, i] for i in reference["ids"] if (page, i) in keys), None)
            if key in entries():
                for detail in self.details(entries()[key], page):
                    reference += detail

    def details(self, entry: Entry, page: str) -> list[nodes.Node]:
        """Annotation and basis on lists of a chapter and the full one; backlinks and BibTeX on the full one."""
        full = page == REFERENCES
        found: list[nodes.Node] = []
        if (full or page.endswith("index")) and "annotation" in entry.fields:
            basis = f" [{BASIS[entry.fields['basis']]}]"
            text = nodes.paragraph("", entry.fields["annotation"])
            text += nodes.emphasis("", basis)
            found.append(nodes.container("", text, classes=["annotation"]))
        if full:
            cited = sorted({
                citation.docname
                for citation in self.env.get_domain("cite").citation_refs  # type: ignore[attr-defined]
                if any(target.key == entry.key for target in citation.targets)
            })  # fmt: skip
            if cited:
                line = nodes.paragraph("", "Cited on ", classes=["cited-on"])
                for position, name in enumerate(cited):
                    line += nodes.Text(", " if position else "")
                    title = nodes.Text(
                        self.env.titles[name].astext() if name in self.env.titles else name
                    )
                    html = self.app.builder.format == "html"
                    line += make_refnode(self.app.builder, page, name, "", title) if html else title
                found.append(nodes.container("", line, classes=["cited-on"]))
            if self.app.builder.name in ("html", "dirhtml"):
                found += [
                    nodes.raw(
                        "",
                        f"<details class='bibtex'><summary>BibTeX {entry.key}</summary>",
                        format="html",
                    ),
                    nodes.literal_block(entry.bibtex, entry.bibtex, language="bibtex"),
                    nodes.raw("", "</details>", format="html"),
                ]
        return found


class ChapterReferences(SphinxDirective):
    """The reference list of a chapter: what stands in its file of the bibliography."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A bulleted `{bibliography}` of the keys of the file."""
        file = folder() / f"{self.arguments[0]}.bib"
        self.env.note_dependency(str(file))
        text = file.read_text(encoding="utf8")
        keys = [key for key, entry in entries().items() if entry.bibtex in text]
        wanted = "{" + ", ".join(f'"{key}"' for key in keys) + "}"
        return self.parse_text_to_nodes(
            f"```{{bibliography}}\n:list: bullet\n:filter: key in {wanted}\n```"
        )


class CollectionPlace(nodes.General, nodes.Element):
    """Where the collection goes once every page was read."""


class Collection(SphinxDirective):
    """The whole collection in its own order, with verdicts."""

    def run(self) -> list[nodes.Node]:
        """A placeholder, and the citations of every entry, so that links to the references resolve."""
        for file in folder().glob("*.bib"):
            self.env.note_dependency(str(file))
        return [CollectionPlace()]


def collection() -> list[tuple[str, Entry]]:
    """The collection's numbers in order, each with its entry."""
    return sorted(
        (number, entry) for entry in entries().values() for number in entry.collection_ids
    )


def entry_item(
    app: Sphinx, source: str, number: str, entry: Entry, verdicts: list[dict[str, Any]]
) -> nodes.list_item:
    """One entry of the collection: title, rendering, links, where it went, basis, verdict."""
    builder, env = app.builder, app.env
    head = nodes.paragraph()
    title = entry.fields.get("listed", entry.title)
    address = entry.fields.get("url")
    head += (
        nodes.reference("", title, refuri=address, internal=False)
        if address
        else nodes.strong("", title)
    )
    if entry.english != title:
        head += nodes.Text(f" [{entry.english}]")
    head += nodes.Text(" ")
    if builder.format == "html" and REFERENCES in env.found_docs:
        head += make_refnode(
            builder, source, REFERENCES, f"ref-{entry.key}", nodes.literal("", entry.key)
        )
    where = nodes.paragraph("", "In this book: ")
    for position, page in enumerate(word for word in entry.keywords if "/" in word):
        where += nodes.Text(", " if position else "")
        if page in env.titles:
            where += make_refnode(builder, source, page, "", nodes.Text(env.titles[page].astext()))
        else:
            where += nodes.emphasis("", f"{page} (to come)")
    where += nodes.Text(f". Basis: {BASIS[entry.fields['basis']]}.")
    item = nodes.list_item("", head, where)
    for row in verdicts:
        line = nodes.paragraph("", "", nodes.strong("", f"Verdict: {row['finding']}. "))
        line += nodes.Text(f"{row['claim']} {row['because']} ")
        line += make_refnode(builder, source, row["page"], "", nodes.Text("Computed here"))
        line += nodes.Text(".")
        item += nodes.container(
            "", line, classes=["llmbook-row", f"found-{row['finding'].replace(' ', '-')}"]
        )
    if not verdicts and "claim" in entry.fields:
        item += nodes.paragraph(
            "", "", nodes.emphasis("", "To be checked: "), nodes.Text(entry.fields["claim"])
        )
    return item


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Draw the collection where it belongs."""
    for place in list(doctree.findall(CollectionPlace)):
        verdicts: dict[str, list[dict[str, Any]]] = {}
        for row in rows_of(app.env, "verdict"):
            verdicts.setdefault(row["key"], []).append(row)
        found = collection()
        listed = {entry.key: entry for _, entry in found}
        tally = Counter(rows[0]["finding"] for key, rows in verdicts.items() if key in listed)
        open_ones = sum(key not in verdicts for key in listed)
        summary = nodes.paragraph(
            "",
            f"{len(found)} entries, {len(listed)} different ones; "
            f"{tally['confirmed']} confirmed, {tally['corrected']} corrected, "
            f"{tally['not checkable']} not checkable here, {open_ones} verdicts still open.",
        )
        drawn: list[nodes.Node] = [nodes.container("", summary, classes=["tally"])]
        for name, title in SECTIONS.items():
            items = [
                entry_item(app, docname, number, entry, verdicts.get(entry.key, []))
                for number, entry in found
                if section_of(number) == name
            ]
            identifier = f"collection-{name}"
            body = nodes.bullet_list("", *items, classes=["collection"])
            drawn.append(
                nodes.section(
                    "",
                    nodes.title("", f"{title} ({len(items)})"),
                    body,
                    ids=[identifier],
                    names=[identifier],
                )
            )
        place.replace_self(drawn)


def section_of(number: str) -> str:
    """The collection's own section of a number: its order is that of the list."""
    first = {"s000": "notes", "s001": "introductions", "s083": "training", "s122": "inference",
             "s144": "repositories", "s155": "data", "s156": "paper-reading"}  # fmt: skip
    return first[max(start for start in first if start <= number)]


class BibFiles(SphinxDirective):
    """Links to the `.bib` files, in HTML alone: they stand beside it."""

    def run(self) -> list[nodes.Node]:
        """One line of links."""
        names = [file.name for file in sorted(folder().glob("*.bib"))]
        links = ", ".join(f'<a href="bibliography/{name}" download>{name}</a>' for name in names)
        return [nodes.raw("", f"<p>{links}</p>", format="html")]


def offer_files(app: Sphinx, failure: Exception | None) -> None:
    """Put the `.bib` files beside the HTML, so that another project can cite by the same keys."""
    if failure is None and app.builder.name == "html":
        target = Path(app.outdir) / "bibliography"
        target.mkdir(exist_ok=True)
        for file in folder().glob("*.bib"):
            (target / file.name).write_bytes(file.read_bytes())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the style, connect the rest."""
    pybtex.plugin.register_plugin("pybtex.style.formatting", "llmbook", Style)
    app.setup_extension("bibtex_once")
    app.add_post_transform(ReferenceDetails)
    app.add_directive("chapter-references", ChapterReferences)
    app.add_directive("collection", Collection)
    app.add_directive("bib-files", BibFiles)
    app.add_node(CollectionPlace)
    app.connect("doctree-resolved", fill)
    app.connect("build-finished", offer_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
