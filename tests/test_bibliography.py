"""The bibliography: whole, unique, found by anyone who looks."""

import re
import shutil
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest

from llmbook import bibliography
from llmbook.bibliography import BASIS, entries, entry, search, sources

ROOT = Path(__file__).parents[1]


def test_the_collection_is_whole():
    ids = [number for found in entries().values() for number in found.collection_ids]
    assert sorted(ids) == [f"s{number:03}" for number in range(157)]
    assert sum(bool(found.collection_ids) for found in entries().values()) == 154


def test_every_entry_of_the_collection_is_annotated():
    for found in entries().values():
        if found.collection_ids:
            assert found.fields["basis"] in BASIS, found.key
            assert len(found.fields["annotation"].split()) >= 25, found.key
            assert found.fields["language"] in ("zh", "en"), found.key
            if re.search(r"[\u4e00-\u9fff]", found.title):
                assert found.fields.get("english"), f"{found.key} has no English rendering"


def test_annotations_are_each_their_own():
    texts = [
        found.fields["annotation"] for found in entries().values() if "annotation" in found.fields
    ]
    assert len(set(texts)) == len(texts)
    openings = [" ".join(text.split()[:5]) for text in texts]
    assert len(set(openings)) == len(openings)


def normalised(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if char.isalnum())


@pytest.mark.parametrize("name", ["doi", "eprint", "title"])
def test_no_work_stands_under_two_keys(name):
    keys = defaultdict(list)
    for found in entries().values():
        value = found.title if name == "title" else found.fields.get(name, "")
        if value:
            keys[normalised(re.sub(r"v\d+$", "", value))].append(found.key)
    assert {value: twice for value, twice in keys.items() if len(twice) > 1} == {}


def test_every_entry_leads_somewhere():
    without_address = {"s000"}  # the collection's own note, named there without an address
    for found in entries().values():
        if not without_address & set(found.collection_ids):
            assert found.links, f"{found.key} has no doi, eprint or url"


def test_keys_follow_the_scheme():
    for key in entries():
        assert re.fullmatch(r"[a-z0-9]+", key), key


def test_related_keys_exist():
    for found in entries().values():
        for key in filter(None, re.split(r",\s*", found.fields.get("related", ""))):
            assert key in entries(), f"{found.key} is related to {key}, which is no entry"


def test_no_run_of_ten_digits_outside_an_address():
    for found in entries().values():
        text = re.sub(r"(https?://\S+|10\.\d{4,}/\S+)", "", found.bibtex)
        assert not re.search(r"\d{10,}", text), found.key


def test_no_list_of_authors_ends_in_others():
    cut = [found.key for found in entries().values() if "others" in found.authors]
    assert cut == []


def test_an_entry_is_its_file_s_own_text():
    text = (ROOT / "bibliography" / "training.bib").read_text(encoding="utf8")
    found = dict(sources(text))
    assert entry("rajbhandari2020zero").bibtex == found["rajbhandari2020zero"]
    assert all(
        source.startswith("@") and source.endswith("}") and source in text
        for source in found.values()
    )


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(KeyError, match="nearest are rajbhandari2020zero"):
        entry("rajbhandari2019zero")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("rajbhandari zero memory", "rajbhandari2020zero"),
        ("KV Cache解读", "zhihukvcache"),
        ("training/zero stages", "githubzeronote"),
        ("12h²+13h", "springxchen2023parameters"),
    ],
)
def test_search_finds_by_author_title_keyword_and_annotation(words, key):
    assert key in [found.key for found in search(words)]


def test_an_empty_search_is_refused():
    with pytest.raises(ValueError, match="name at least one"):
        search("  ")


def test_without_a_checkout_the_files_of_the_wheel_are_read(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "llmbook" / "bibliography"
    package.mkdir(parents=True)
    shutil.copytree(ROOT / "bibliography", package / "files")
    monkeypatch.setattr(bibliography, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(bibliography, "files", lambda _: package)
    assert bibliography.folder() == package / "files"
