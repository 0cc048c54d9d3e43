"""The frozen corpus is what it says: one release, whole, licensed, the same for everyone."""

import ast
import hashlib
import lzma
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from llmbook import corpus
from llmbook.corpus import Document, bilingual_titles, documents, read_titles, serialized, unpacked


def python(code: str) -> str:
    """What a new process prints that runs the code with the library on its path."""
    environment = os.environ | {"PYTHONPATH": str(corpus.FOLDER.parents[1])}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_packed_file_is_the_one_whose_hash_and_licence_stand_beside_it():
    digest, name = corpus.HASH_FILE.read_text("ascii").split()
    assert name == corpus.CORPUS_FILE.name
    assert digest == hashlib.sha256(corpus.CORPUS_FILE.read_bytes()).hexdigest()
    licence = corpus.LICENSE_FILE.read_text("utf-8")
    for title in (
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
        "CNRI LICENSE AGREEMENT",
        "BEOPEN.COM LICENSE",
    ):
        assert title in licence


def test_packed_file_is_about_two_megabytes():
    assert 1.8e6 < corpus.CORPUS_FILE.stat().st_size < 2.3e6


def test_documents_are_ordered_unique_and_not_blank():
    names = [document.name for document in documents()]
    assert names == sorted(set(names))
    assert all(document.text.strip() for document in documents())


def test_kind_follows_from_the_folder_of_the_release():
    found = {
        (document.kind, document.name[:4], Path(document.name).suffix) for document in documents()
    }
    assert found == {("documentation", "Doc/", ".rst"), ("library", "Lib/", ".py")}


def test_corpus_leaves_out_tests_and_tables():
    for document in documents():
        assert not re.search(
            r"/(test|encodings|idlelib|lib2to3|pydoc_data|whatsnew|c-api)/", document.name
        )


def test_every_library_document_is_whole_python():
    with warnings.catch_warnings(action="ignore"):
        for document in documents():
            if document.kind == "library":
                ast.parse(document.text, filename=document.name)


def test_texts_are_those_of_the_release():
    texts = {document.name: document.text for document in documents()}
    assert ".. versionadded:: 3.11" in texts["Doc/library/tomllib.rst"]
    assert texts["Lib/tomllib/_parser.py"].startswith("# SPDX-License-Identifier: MIT")
    assert "\r" not in "".join(texts.values())


def test_documents_are_read_once():
    assert documents() is documents()


def test_loading_needs_neither_numpy_nor_torch():
    load = "import sys; from llmbook import corpus; corpus.documents()"
    assert python(f"{load}; print({{'numpy', 'torch'}} & set(sys.modules))").strip() == "set()"


def test_files_are_opened_where_an_audit_hook_sees_it():
    code = """
import os, sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(os.path.basename(str(args[0]))) if event == "open" else None)
from llmbook import corpus
corpus.documents(), corpus.bilingual_titles()
print(sorted({"cpython-3.11.2.jsonl.xz", "cpython-3.11.2.jsonl.xz.sha256", "titles.tsv"} - opened))
"""
    assert python(code).strip() == "[]"


def test_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    damaged = tmp_path / "damaged.xz"
    damaged.write_bytes(corpus.CORPUS_FILE.read_bytes()[:-1])
    monkeypatch.setattr(corpus, "CORPUS_FILE", damaged)
    with pytest.raises(ValueError, match="the corpus is damaged: its sha256 begins with"):
        documents.__wrapped__()


def test_any_text_survives_packing():
    text = 'separators \u2028 \x85 \x0c, breaks \r\n\n, a tab \t, "quotes", \\ and 流水线'
    texts = (Document("Doc/a.rst", "documentation", text), Document("Lib/b.py", "library", ""))
    assert unpacked(lzma.compress(serialized(texts))) == texts


def test_titles_are_the_157_entries_of_the_collection_in_order():
    titles = bilingual_titles()
    assert [title.entry for title in titles] == [f"s{number:03d}" for number in range(157)]
    han = re.compile("[\u4e00-\u9fff]")
    assert sum(bool(han.search(title.title)) for title in titles) == 151
    assert not any(han.search(title.english) for title in titles)


@pytest.mark.parametrize("line", ["s001\tno rendering", "s001\t标题\t", "s001\ta\tb\tc", ""])
def test_incomplete_line_of_titles_is_named(line: str):
    with pytest.raises(ValueError, match=r"line 3: .* lacks one of entry, title, english"):
        read_titles(f"entry\ttitle\tenglish\ns000\t标题\tTitle\n{line}\n")
