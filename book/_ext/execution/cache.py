"""What is known of each page's last execution, and what is compared to see whether it still holds.

One record a page (JSON) stands beside the jupyter-cache in which its executed notebook lies. Its key
names everything the page came from: code, expressions, files, folders, versions, and this stage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sqlite3
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

SHAPING_MODULES = ("__main__.py", "cells.py", "child.py", "matplotlibrc", "pages.py", "watch.py")
SHAPING_VARIABLES = ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY")
ABSENT, CHANGED = "absent", "changed while the page ran"
CLOCK_GRAIN_NS = 20_000_000  # file systems stamp a little behind the clock

Key = dict[str, dict[str, str]]  # kind ("code", "files", "versions"), part, fingerprint


@dataclass(frozen=True)
class Record:
    """A page's last execution: what it came from and what is said about it."""

    source: str  # fingerprint of the page's whole text: if that is the same, its code is
    key: Key
    hashkey: str  # jupyter-cache's name for the notebook, and the fingerprint of its file
    notebook: str
    when: str
    shown_versions: list[str]
    seconds: dict[str, float]  # wall, cpu, waited (for nothing of its own doing), budget
    cells: int
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cache:
    """A folder with a jupyter-cache and one record a page."""

    folder: Path

    def lock(self, *, shared: bool) -> int:
        """Keep other stages out until the descriptor is closed, or just any stage if shared."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                print("execution: waiting for another build", flush=True)
                fcntl.flock(lock, kind)
        return lock

    def record_path(self, name: str) -> Path:
        """Where a page's record lies."""
        return self.folder / "pages" / f"{name}.json"

    def record(self, name: str) -> Record | None:
        """A page's record; None if there is none or it cannot be used."""
        try:
            values = json.loads(self.record_path(name).read_bytes())
            whole = values.pop("checksum") == checksum(values)
            record = Record(**values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        found = fingerprint(str(self.notebook_path(record.hashkey)))
        return record if whole and found == record.notebook else None

    def records(self) -> dict[str, Record]:
        """The usable records by page."""
        folder = self.folder / "pages"
        files = sorted(folder.rglob("*.json"))
        names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
        return {name: record for name in names if (record := self.record(name))}

    def forget(self, name: str) -> None:
        """Remove a page's record, so that nothing can show an outdated result as a true one."""
        self.record_path(name).unlink(missing_ok=True)

    def notebook_path(self, hashkey: str) -> Path:
        """Where jupyter-cache keeps an executed notebook."""
        return self.folder / "executed" / hashkey / "base.ipynb"

    def write(self, path: Path, text: str) -> None:
        """Write a file so that a reader, or a crash, sees the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self.folder / "part"  # one writer at a time: the lock
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)

    def write_json(self, path: Path, values: Any) -> None:
        """Write JSON, all or nothing."""
        self.write(path, json.dumps(values, indent=1, sort_keys=True) + "\n")

    def write_record(self, name: str, record: Record) -> None:
        """Write a page's record, all or nothing."""
        values = asdict(record)
        self.write_json(self.record_path(name), {**values, "checksum": checksum(values)})

    def bring_index_up_to_date(self, records: dict[str, Record]) -> None:
        """Let jupyter-cache's database name exactly the notebooks that have a record.

        The database is an index and nothing depends on its age: where it is missing, damaged or
        behind (a stage was killed), it is made again, in one transaction.
        """
        wanted = {record.hashkey: name for name, record in records.items()}
        if self.indexed_hashkeys() != wanted.keys():
            from jupyter_cache.cache import db  # type: ignore[import-untyped]

            for path in self.folder.glob("global.db*"):
                path.unlink()
            try:
                with db.session_context(db.create_db(self.folder)) as session:
                    for key, name in wanted.items():
                        session.add(db.NbCacheRecord(hashkey=key, uri=name, data={}))
                    session.commit()
            except Exception as error:  # a full disk, in the words of a library
                raise OSError(str(error)) from error
        for path in (self.folder / "executed").glob("*"):
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)

    def indexed_hashkeys(self) -> set[str] | None:
        """The notebooks that jupyter-cache's database names; None if it cannot be read."""
        address = f"file:{self.folder / 'global.db'}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
                whole = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
                rows = database.execute("SELECT hashkey FROM nbcache").fetchall()
        except sqlite3.Error:
            return None
        return {row[0] for row in rows} if whole else None


def differences(kind: str, former: dict[str, str], now: dict[str, str]) -> list[str]:
    """Which parts of a key are no longer as they were, and what happened to them."""
    found = []
    for part in sorted(former.keys() | now.keys()):
        old, new = former.get(part, ABSENT), now.get(part, ABSENT)
        if kind == "versions":
            how = f"was {old}, now {new}"
        else:
            how = {(ABSENT, new): "appeared", (old, ABSENT): "is gone"}.get((old, new), "changed")
        if old != new:
            found.append(f"{part} {CHANGED if old == CHANGED else how}")
    return found


def checksum(values: dict[str, Any]) -> str:
    """Hash by which a damaged record is known."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def fingerprint(path: str) -> str:
    """Hash of a file's content, or that there is nothing; of a folder (`path/`), of the names in it.

    Hidden ones and Python's bytecode are left out.
    """
    try:
        if path.endswith(os.sep):
            names = [one for one in os.listdir(path) if not one.startswith((".", "__pycache__"))]
            return hashlib.sha256(os.fsencode("\0".join(sorted(names)))).hexdigest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        return "folder"
    except OSError:
        return ABSENT


def changed_since(path: str, since_ns: int) -> bool:
    """Whether a file, or a folder's list of names, changed after a moment."""
    try:
        return os.stat(path).st_ctime_ns > since_ns - CLOCK_GRAIN_NS
    except OSError:
        return False


def versions_in_force(locks: Path | None) -> dict[str, str]:
    """Versions that count: Python's, those locked, those installed of what is locked, this stage's.

    Without locks every installed package counts. Read from the names of the folders in which
    installers leave their notes: a listing, no import.
    """
    locked = locked_versions(locks.read_text(encoding="utf-8")) if locks else {}
    here = Path(__file__).parent
    own = hashlib.sha256(b"\0".join((here / name).read_bytes() for name in SHAPING_MODULES))
    versions = {"python": platform.python_version(), "the stage": own.hexdigest()[:12]}
    versions |= {name: os.environ.get(name, "unset") for name in SHAPING_VARIABLES}
    versions |= {f"{name} in the locks": version for name, version in locked.items()}
    for folder in filter(os.path.isdir, sys.path):
        for entry in os.listdir(folder):
            match = re.fullmatch(r"(.+?)-([^-]+)\.dist-info", entry)
            if match and (not locked or normalized(match[1]) in locked):
                versions.setdefault(normalized(match[1]), match[2])
    return versions


def locked_versions(text: str) -> dict[str, str]:
    """Versions by package from a constraints file (`name==version` lines)."""
    pairs = re.findall(r"^\s*([\w.-]+)(?:\[[^\]]*\])?\s*==\s*([^\s;#]+)", text, re.MULTILINE)
    return {normalized(name): version for name, version in pairs}


def normalized(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
