"""The built HTML, read as a browser would: `nox -s site` after `nox -s build`."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

REQUESTS = {
    "img": "src",
    "script": "src",
    "link": "href",
    "source": "src",
    "iframe": "src",
    "video": "src",
}


class Page(HTMLParser):
    """Ids, links, requests and images of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.requests, self.images, self.errors = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in REQUESTS and REQUESTS[tag] in found and found.get("rel") != "canonical":
            self.requests.append(found[REQUESTS[tag]])
        if tag == "img":
            self.images.append(found)


@cache
def read(path):
    return Page(path.read_text(encoding="utf8"))


def pages(root):
    return [page for page in root.glob("**/*.html") if "_static" not in page.parts]


def test_there_is_a_site(built):
    assert (built / "index.html").exists()
    assert len(pages(built)) > 20


def test_no_page_asks_anything_of_another_host(built):
    for page in pages(built):
        outside = [address for address in read(page).requests if re.match(r"(https?:)?//", address)]
        assert outside == [], page
    for sheet in built.glob("_static/**/*.css"):
        text = sheet.read_text(encoding="utf8")
        assert not re.search(r"@import\s+url\(['\"]?https?:|url\(['\"]?(https?:)?//", text), sheet


def test_every_inside_link_leads_to_a_page_and_an_anchor(built):
    broken = []
    for page in pages(built):
        for address in read(page).links:
            if re.match(r"[a-z]+:", address):
                continue
            file, anchor = urldefrag(address)
            target = (page.parent / unquote(file)).resolve() if file else page
            if not target.exists() or (
                anchor and target.suffix == ".html" and unquote(anchor) not in read(target).ids
            ):
                broken.append((page.name, address))
    assert broken == []


def test_every_image_has_an_alternative_text(built):
    for page in pages(built):
        for image in read(page).images:
            assert image.get("alt", "").strip(), (page, image)


def test_ids_are_unique_on_each_page(built):
    for page in pages(built):
        ids = read(page).ids
        assert {name for name in ids if ids.count(name) > 1} == set(), page


def test_mathematics_is_mathml_without_errors(built):
    texts = [page.read_text(encoding="utf8") for page in pages(built)]
    assert sum(text.count("<math") for text in texts) > 50
    assert not any("<merror" in text for text in texts)


def test_no_output_shows_a_figure_as_its_text(built):
    for page in pages(built):
        assert "&lt;Figure size" not in page.read_text(encoding="utf8"), page


def test_no_path_of_the_machine_is_printed(built):
    for page in pages(built):
        text = page.read_text(encoding="utf8")
        assert str(Path(__file__).parents[2]) not in text, page


def test_every_entry_of_the_bibliography_has_a_permanent_link(built):
    from llmbook.bibliography import entries

    ids = set(read(built / "references.html").ids)
    assert {f"ref-{key}" for key in entries()} <= ids


def test_the_collection_is_whole_and_counts_its_verdicts(built):
    text = (built / "collection.html").read_text(encoding="utf8")
    assert re.search(r"157 entries, 154 different ones; \d+ confirmed, \d+ corrected", text)


def test_every_page_says_when_it_was_executed(built):
    for page in pages(built):
        if 'class="cell docutils' in page.read_text(encoding="utf8"):
            assert page.read_text(encoding="utf8").count("executed-on") == 1, page


@pytest.fixture
def built(request):
    return Path(request.config.getoption("--built"))


def test_what_the_book_says_it_prints_is_what_it_prints(request):
    """`nox -s verify` compares a reader's run with book/printed: it must not fall behind."""
    from verify import executed_pages, outdated

    cache = Path(request.config.getoption("--built")).parent / "cache"
    found = outdated(cache, executed_pages(cache), exactly=False)
    assert not found, f"`nox -s printed` stores what these pages print: {', '.join(found)}"
