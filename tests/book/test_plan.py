"""The plan of pages to come: whole, unambiguous, and enough for everything that points at it."""

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmbook.bibliography import entries

BOOK = Path(__file__).parents[2] / "book"
CHAPTERS = ("foundations", "training", "inference", "zoo", "data")
PAGES: list[dict[str, Any]] = tomllib.loads((BOOK / "plan.toml").read_text(encoding="utf8"))["page"]
PAGE_ROLE = re.compile(r"\{page\}`([^`]+)`")


def reachable() -> set[str]:
    """Every page that stands in the book or in the plan, by its path."""
    standing = {file.relative_to(BOOK).with_suffix("").as_posix() for file in BOOK.rglob("*.md")}
    return standing | {page["stem"] for page in PAGES}


def doubled(names: list[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def test_every_stem_is_planned_once():
    assert doubled([page["stem"] for page in PAGES]) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page["stem"])
def test_a_planned_page_says_where_it_stands_and_what_it_answers(page: dict[str, Any]):
    assert page.keys() == {"stem", "title", "question", "techniques"}
    assert re.fullmatch(rf"({'|'.join(CHAPTERS)})(/[a-z0-9_]+){{1,2}}", page["stem"])
    assert page["title"].strip() == page["title"] != ""
    assert page["question"].strip().endswith("?")
    assert page["question"].count("?") == 1, "one question in one sentence"
    assert page["techniques"]
    assert all(name.strip() for name in page["techniques"])


def test_titles_and_questions_need_no_escapes_where_they_are_typeset():
    for page in PAGES:
        assert not set("*_`{}|$<>") & set(page["title"] + page["question"]), page["stem"]
        assert not set("*_`{}|$<>") & set("".join(page["techniques"])), page["stem"]


def test_titles_and_techniques_stand_once():
    assert doubled([page["title"].casefold() for page in PAGES]) == []
    assert doubled([name.casefold() for page in PAGES for name in page["techniques"]]) == []


def test_pages_of_a_chapter_stand_together_in_reading_order():
    chapters = [page["stem"].split("/")[0] for page in PAGES]
    assert sorted(chapters, key=CHAPTERS.index) == chapters


def test_every_page_that_the_bibliography_names_stands_or_is_planned():
    named = {
        word: key for key, entry in entries().items() for word in entry.keywords if "/" in word
    }
    assert {page: key for page, key in named.items() if page not in reachable()} == {}


def test_every_entry_of_the_collection_has_a_page():
    listed = [entry for entry in entries().values() if entry.collection_ids]
    homeless = [entry.key for entry in listed if not any("/" in word for word in entry.keywords)]
    assert listed
    assert homeless == []


@pytest.mark.parametrize(
    "file", sorted(BOOK.rglob("*.md")), ids=lambda file: file.relative_to(BOOK).as_posix()
)
def test_every_page_that_a_page_points_to_stands_or_is_planned(file: Path):
    pointed = {stem.strip("/") for stem in PAGE_ROLE.findall(file.read_text(encoding="utf8"))}
    assert pointed - reachable() == set()
