"""The command makes the shipped corpus from the release, the same way each time."""

from pathlib import Path

import pytest

from llmbook import corpus
from llmbook.corpus import making


def release(folder: Path, files: dict[str, str], *, version: str = "3.11.2") -> Path:
    """A source folder of a release with the given files."""
    header = {
        "Include/patchlevel.h": f'#define PY_VERSION      \t"{version}"\n',
        "LICENSE": "Terms\n",
    }
    for name, text in (header | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode("utf-8"))
    return folder


@pytest.fixture
def two_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    selection = tmp_path / "selection.txt"
    selection.write_text("Lib/*.py\nDoc/howto/*.rst\n", "ascii")
    monkeypatch.setattr(making, "SELECTION_FILE", selection)


def test_selection_takes_the_shipped_documents_back_from_their_own_files(tmp_path: Path):
    shipped = corpus.documents()
    others = {
        "Lib/test/test_heapq.py": "pass",
        "Doc/whatsnew/3.11.rst": "New",
        "Lib/heapq.pyc": "x",
    }
    source = release(tmp_path, {document.name: document.text for document in shipped} | others)
    assert making.selected(source, making.SELECTION_FILE.read_text("ascii").split()) == shipped


@pytest.mark.usefixtures("two_patterns")
def test_same_files_give_the_same_bytes_in_whatever_order_they_were_written(tmp_path: Path):
    files = {
        "Lib/b.py": "b = 1\n",
        "Doc/howto/a.rst": "标题\n",
        "Lib/a.py": "a = 1\n",
        "Lib/blank.py": "\n",
    }
    made = []
    for target, order in (("one", 1), ("two", -1)):
        source = release(tmp_path / "sources" / target, dict(list(files.items())[::order]))
        (tmp_path / target).mkdir()
        making.main([str(source), str(tmp_path / target)])
        made.append({path.name: path.read_bytes() for path in (tmp_path / target).iterdir()})
    assert made[0] == made[1]
    packed = made[0][corpus.CORPUS_FILE.name]
    assert [d.name for d in corpus.unpacked(packed)] == ["Doc/howto/a.rst", "Lib/a.py", "Lib/b.py"]
    assert (
        corpus.checked(packed, expected=made[0][corpus.HASH_FILE.name].split()[0].decode())
        == packed
    )
    assert made[0][corpus.LICENSE_FILE.name] == b"Terms\n"


@pytest.mark.usefixtures("two_patterns")
def test_command_prints_what_the_corpus_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = release(tmp_path / "source", {"Lib/a.py": "a = 1\n", "Doc/howto/a.rst": "标题 two\n"})
    making.main([str(source), str(tmp_path)])
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "documentation: 1 documents, 7 characters, 2 words, 11 bytes"
    assert second == "library: 1 documents, 6 characters, 3 words, 6 bytes"
    assert third.startswith(f"{corpus.CORPUS_FILE.name}: ")


def test_another_release_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"source .* holds CPython 3.12.0, not CPython 3.11.2"):
        making.write_corpus(release(tmp_path, {}, version="3.12.0"), tmp_path)


def test_folder_without_a_release_is_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"is no release of CPython: no version in Include/patchlevel.h"
    ):
        making.write_corpus(tmp_path, tmp_path)


def test_pattern_that_matches_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"pattern Lib/missing.py matches no file"):
        making.selected(release(tmp_path, {"Lib/a.py": "pass"}), ["Lib/a.py", "Lib/missing.py"])
