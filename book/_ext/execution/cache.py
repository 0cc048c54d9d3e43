"""What is known of each page's last execution, and whether it still holds.

One record a page (JSON) stands beside the jupyter-cache in which its executed notebook lies. A
page is reused only if its record says that nothing it came from has changed: code, expressions,
files, folders, versions, and the modules of this stage that shape outputs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from execution.pages import (
    PageError,
    code_key,
    read_page,
)

FORMAT = 1
SHAPING_MODULES = ("child.py", "matplotlibrc", "notebooks.py", "outputs.py", "pages.py", "watch.py")
CHANGED = "changed while the page ran"
CLOCK_GRAIN_NS = 20_000_000  # file systems stamp a little behind the clock

Fingerprint = Callable[[str], str]


@dataclass(frozen=True)
class Record:
    """A page's last execution: what it came from (the key) and what is said about it."""

    source: str
    code: dict[str, str]
    files: dict[str, str]
    folders: dict[str, str]
    versions: dict[str, str]
    stage: str
    hashkey: str
    notebook: str
    stamp: dict[str, Any]
    reasons: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    cells: int = 0


@dataclass(frozen=True)
class Key:
    """What all pages of a run share: the repository, versions and the stage's own fingerprint."""

    root: Path
    versions: dict[str, str]
    stage: str


class Cache:
    """A folder with a jupyter-cache and one record a page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record_path(self, name: str) -> Path:
        """Where a page's record lies."""
        return self.folder / "pages" / f"{name}.json"

    def record(self, name: str) -> Record | None:
        """A page's record; None if there is none or it cannot be read."""
        try:
            values = json.loads(self.record_path(name).read_bytes())
            if values.pop("format") != FORMAT:
                return None
            return Record(**{**values, "reasons": tuple(values["reasons"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write_record(self, name: str, record: Record) -> None:
        """Write a page's record, all or nothing."""
        write_json(self.record_path(name), {"format": FORMAT, **asdict(record)})

    def forget(self, name: str) -> None:
        """Remove a page's record, so that nothing can show an outdated result as a true one."""
        with contextlib.suppress(FileNotFoundError):
            self.record_path(name).unlink()

    def names(self) -> list[str]:
        """The pages that have a record."""
        pages = self.folder / "pages"
        return [
            path.relative_to(pages).with_suffix("").as_posix() for path in pages.rglob("*.json")
        ]

    def forget_pages_other_than(self, names: set[str]) -> None:
        """Remove the records of pages that the book no longer has."""
        for name in set(self.names()) - names:
            self.forget(name)

    def store(self, hashkey: str, notebook: str) -> str:
        """Write an executed notebook; the fingerprint of its file."""
        path = self.notebook_path(hashkey)
        write_atomically(path, notebook)
        return file_fingerprint(str(path))

    def notebook_path(self, hashkey: str) -> Path:
        """Where jupyter-cache keeps an executed notebook."""
        return self.folder / "executed" / hashkey / "base.ipynb"

    def holds(self, record: Record) -> bool:
        """Whether a record's executed notebook is there and whole."""
        return file_fingerprint(str(self.notebook_path(record.hashkey))) == record.notebook

    def bring_index_up_to_date(self) -> None:
        """Let jupyter-cache's database name exactly the notebooks that have a record.

        The database is an index and nothing depends on its age: where it is missing, damaged or
        behind (a stage was killed), it is made again, in one transaction.
        """
        wanted = {record.hashkey: name for name in self.names() if (record := self.record(name))}
        if self.indexed_hashkeys() != wanted.keys():
            from jupyter_cache.cache import db  # type: ignore[import-untyped]

            for path in self.folder.glob("global.db*"):
                path.unlink()
            with db.session_context(db.create_db(self.folder)) as session:
                session.add_all(
                    db.NbCacheRecord(hashkey=key, uri=name, data={}) for key, name in wanted.items()
                )
                session.commit()
        for path in (self.folder / "executed").glob("*"):
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.rglob("*.part"):  # of a stage that was killed
            path.unlink()

    def indexed_hashkeys(self) -> set[str] | None:
        """The notebooks that jupyter-cache's database names; None if it cannot be read."""
        path = self.folder / "global.db"
        if not path.exists():
            return None
        try:
            with contextlib.closing(sqlite3.connect(path)) as database:
                if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
                    return None
                return {row[0] for row in database.execute("SELECT hashkey FROM nbcache")}
        except sqlite3.DatabaseError:
            return None


def reasons_to_execute(
    name: str,
    path: Path,
    record: Record | None,
    *,
    key: Key,
    cache: Cache,
    fingerprint: Fingerprint,
) -> list[str]:
    """Why a page must run; empty if its outputs still hold."""
    if record is None:
        return ["it has no usable record: never executed, or its last run was not completed"]
    return [
        *changed_code(name, path, record),
        *changed_sources(record.files, key.root, fingerprint),
        *(f"folder {one}" for one in changed_sources(record.folders, key.root, folder_fingerprint)),
        *changed_versions(record.versions, key.versions),
        *(["the stage's own code changed"] if record.stage != key.stage else []),
        *([] if cache.holds(record) else ["its executed notebook is missing or damaged"]),
    ]


def changed_code(name: str, path: Path, record: Record) -> list[str]:
    """Which cells or expressions changed; a page that is byte for byte the same is not parsed."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() == record.source:
        return []
    try:
        now = code_key(read_page(name, path, content))
    except PageError:
        return ["the page cannot be read"]
    return [f"{part} {how}" for part, how in differences(record.code, now)]


def changed_sources(used: dict[str, str], root: Path, fingerprint: Fingerprint) -> list[str]:
    """Which files or folders are no longer as the page found them, and what happened to them."""
    return [
        f"{path} {change(former, now)}"
        for path, former in used.items()
        if (now := fingerprint(str(root / path))) != former
    ]


def change(former: str, now: str) -> str:
    """What happened to a file, in words."""
    if former == CHANGED:
        return former
    return "appeared" if former == "absent" else "is gone" if now == "absent" else "changed"


def changed_versions(former: dict[str, str], now: dict[str, str]) -> list[str]:
    """Which packages have another version than when the page ran."""
    return [
        f"{name}: {former.get(name, 'none')}, now {now.get(name, 'none')}"
        for name, _ in differences(former, now)
    ]


def differences(former: dict[str, str], now: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Keys that were added, removed or changed."""
    for part in sorted(former.keys() | now.keys()):
        if former.get(part) != now.get(part):
            how = "is gone" if part not in now else "is new" if part not in former else "changed"
            yield part, how


def file_fingerprint(path: str) -> str:
    """Hash of a file's content; of a folder that it is one; or that there is nothing."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        return "folder"
    except OSError:
        return "absent"


def folder_fingerprint(path: str) -> str:
    """Hash of the names in a folder, without hidden ones and Python's bytecode."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return "absent"
    shown = "\0".join(name for name in names if not name.startswith((".", "__pycache__")))
    return hashlib.sha256(shown.encode("utf-8", "surrogateescape")).hexdigest()


def remembering(fingerprint: Fingerprint) -> Fingerprint:
    """The same, reading each file once in a run."""
    return functools.cache(fingerprint)


def fingerprints_of_files(
    paths: list[str],
    *,
    missing: list[str],
    root: Path,
    since_ns: int,
    fingerprint: Fingerprint,
) -> dict[str, str]:
    """Fingerprints of the files a page used, by path below the root.

    What changed or went after the run began may have been read as it was before: it is recorded so
    that the page runs again. `missing` are files that were looked for in vain.
    """
    found = {}
    for path in sorted({*paths, *missing}):
        now = CHANGED if changed_since(path, since_ns) else fingerprint(path)
        gone = now == "absent" and path in paths
        found[os.path.relpath(path, root)] = CHANGED if gone else now
    return found


def fingerprints_of_folders(paths: list[str], *, root: Path, since_ns: int) -> dict[str, str]:
    """Fingerprints of the folders a page listed, by path below the root."""
    return {
        os.path.relpath(path, root): (
            CHANGED if changed_since(path, since_ns) else folder_fingerprint(path)
        )
        for path in paths
    }


def changed_since(path: str, since_ns: int) -> bool:
    """Whether a file, or a folder's list of names, changed after a moment."""
    try:
        return os.stat(path).st_ctime_ns > since_ns - CLOCK_GRAIN_NS
    except OSError:
        return False


def write_json(path: Path, values: Any) -> None:
    """Write JSON, all or nothing."""
    write_atomically(path, json.dumps(values, indent=1, sort_keys=True) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def stage_fingerprint() -> str:
    """Hash of the modules of this stage that decide what outputs look like."""
    here = Path(__file__).parent
    return hashlib.sha256(
        b"\0".join((here / name).read_bytes() for name in SHAPING_MODULES)
    ).hexdigest()


def versions_in_force(locks: Path | None) -> dict[str, str]:
    """Python's version and those of the installed packages that `locks` names (all, without locks).

    Read from the names of the folders in which installers leave their notes: a listing, no import.
    """
    locked = locked_versions(locks.read_text(encoding="utf-8")) if locks else {}
    versions = {"python": platform.python_version()}
    for folder in sys.path:
        if os.path.isdir(folder):
            for entry in os.listdir(folder):
                if match := re.fullmatch(r"(.+?)-([^-]+)\.dist-info", entry):
                    name = normalized(match[1])
                    if not locked or name in locked:
                        versions.setdefault(name, match[2])
    return versions | {f"{name} in the locks": version for name, version in locked.items()}


def locked_versions(text: str) -> dict[str, str]:
    """Versions by package from a constraints file (`name==version` lines)."""
    pairs = re.findall(r"^\s*([\w.-]+)(?:\[[^\]]*\])?\s*==\s*([^\s;#]+)", text, re.MULTILINE)
    return {normalized(name): version for name, version in pairs}


def normalized(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
