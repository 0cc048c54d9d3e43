"""What is known of each page's last execution, and whether it still holds.

One record a page (JSON) stands beside the jupyter-cache in which its executed notebook lies.  A page
is reused only if its record says that nothing it came from has changed: code, expressions, files,
folders, versions, and the modules of this stage that shape outputs.
"""

from __future__ import annotations

import contextlib
import copy
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

from execution.pages import KERNELSPEC, Page, PageError, code_key, name_page_in_kernelspec, read_page

FORMAT = 1
SHAPING_MODULES = ("child.py", "matplotlibrc", "outputs.py", "pages.py", "watch.py")
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
        write_atomically(self.record_path(name), {"format": FORMAT, **asdict(record)})

    def forget(self, name: str) -> None:
        """Remove a page's record, so that nothing can show an outdated result as a true one."""
        with contextlib.suppress(FileNotFoundError):
            self.record_path(name).unlink()

    def names(self) -> list[str]:
        """The pages that have a record."""
        pages = self.folder / "pages"
        return [path.relative_to(pages).with_suffix("").as_posix() for path in pages.rglob("*.json")]

    def forget_pages_other_than(self, names: set[str]) -> None:
        """Remove the records of pages that the book no longer has."""
        for name in set(self.names()) - names:
            self.forget(name)

    def remove_unused_notebooks(self) -> None:
        """Remove executed notebooks to which no record refers any more."""
        used = {record.hashkey for name in self.names() if (record := self.record(name))}
        unused = self.known_hashkeys() - used
        if unused:
            with contextlib.closing(sqlite3.connect(self.folder / "global.db")) as connection, connection:
                connection.executemany("DELETE FROM nbcache WHERE hashkey = ?", [(key,) for key in unused])
        for path in (self.folder / "executed").iterdir() if (self.folder / "executed").is_dir() else ():
            if path.name not in used:
                shutil.rmtree(path, ignore_errors=True)

    def notebook_path(self, hashkey: str) -> Path:
        """Where jupyter-cache keeps an executed notebook."""
        return self.folder / "executed" / hashkey / "base.ipynb"

    def known_hashkeys(self) -> set[str]:
        """The notebooks that jupyter-cache's database knows; a damaged database is removed."""
        database = self.folder / "global.db"
        if not database.exists():
            return set()
        try:
            with contextlib.closing(sqlite3.connect(database)) as connection:
                if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("quick_check")
                return {row[0] for row in connection.execute("SELECT hashkey FROM nbcache")}
        except sqlite3.DatabaseError:
            for path in self.folder.glob("global.db*"):
                path.unlink()
            shutil.rmtree(self.folder / "executed", ignore_errors=True)
            return set()

    def store(self, page: Page, cells: list[list[dict[str, Any]]], glue: list[dict[str, Any]]) -> tuple[str, str]:
        """Put an executed notebook into the jupyter-cache; its key there and its content's fingerprint."""
        from jupyter_cache import get_cache
        from jupyter_cache.base import CacheBundleIn

        cache = get_cache(self.folder)
        notebook = executed_notebook(page, cells, glue)
        _, hashkey = cache.create_hashed_notebook(notebook)
        shutil.rmtree(self.notebook_path(hashkey).parent, ignore_errors=True)  # also what a crash left half done
        bundle = CacheBundleIn(notebook, uri=page.name, data={})
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        return hashkey, file_fingerprint(str(self.notebook_path(hashkey)))


def executed_notebook(page: Page, cells: list[list[dict[str, Any]]], glue: list[dict[str, Any]]) -> Any:
    """The page's notebook with outputs; values of expressions ride on the first code cell."""
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=copy.deepcopy(page.notebook.cells))
    notebook.metadata["kernelspec"] = dict(page.notebook.metadata.get("kernelspec", KERNELSPEC))
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    name_page_in_kernelspec(notebook, page.name)
    for cell, outputs in zip(page.cells, cells, strict=True):
        target = notebook.cells[cell.position]
        target.id = f"cell-{cell.number}"  # MyST-NB's reader draws them at random
        target.execution_count = cell.number
        target.outputs = [nbformat.from_dict(output) for output in outputs + (glue if cell.number == 1 else [])]
        for output in target.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.number
    return notebook


def reasons_to_execute(
    name: str, path: Path, record: Record | None, *, key: Key, cache: Cache, fingerprint: Fingerprint, known: set[str]
) -> list[str]:
    """Why a page must run; empty if its outputs still hold."""
    if record is None:
        return ["it has no usable record: never executed, or its last run was not completed"]
    reasons = changed_code(name, path, record)
    for kind, used in (("", record.files), ("folder ", record.folders)):
        for used_path, former in used.items():
            now = fingerprint(str(key.root / used_path)) if not kind else folder_fingerprint(str(key.root / used_path))
            if now != former:
                reasons.append(kind + describe_change(used_path, former, now))
    reasons += changed_versions(record.versions, key.versions)
    if record.stage != key.stage:
        reasons.append("the stage's own code changed")
    if record.hashkey not in known or file_fingerprint(str(cache.notebook_path(record.hashkey))) != record.notebook:
        reasons.append("its executed notebook is missing or damaged")
    return reasons


def changed_code(name: str, path: Path, record: Record) -> list[str]:
    """Which cells or expressions changed; a page that is byte for byte the same is not parsed."""
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() == record.source:
        return []
    try:
        now = code_key(read_page(name, path, text.decode("utf-8")))
    except PageError:
        return ["the page cannot be read"]
    return [f"{part} {how}" for part, how in differences(record.code, now)]


def changed_versions(former: dict[str, str], now: dict[str, str]) -> list[str]:
    """Which packages have another version than when the page ran."""
    return [f"{name}: {former.get(name, 'none')}, now {now.get(name, 'none')}" for name, _ in differences(former, now)]


def differences(former: dict[str, str], now: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Keys that were added, removed or changed."""
    for part in sorted(former.keys() | now.keys()):
        if former.get(part) != now.get(part):
            yield part, "is gone" if part not in now else "is new" if part not in former else "changed"


def describe_change(path: str, former: str, now: str) -> str:
    """What happened to a file, in words."""
    if former == "absent":
        return f"{path} appeared"
    if now == "absent":
        return f"{path} is gone"
    if former.startswith("changed while"):
        return f"{path} {former}"
    return f"{path} changed"


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
        names = sorted(name for name in os.listdir(path) if not name.startswith((".", "__pycache__")))
    except OSError:
        return "absent"
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def remembering(fingerprint: Fingerprint) -> Fingerprint:
    """The same, reading each file once in a run."""
    return functools.cache(fingerprint)


def fingerprints_after_run(paths: list[str], root: Path, *, since_ns: int, fingerprint: Fingerprint) -> dict[str, str]:
    """Fingerprints of what a page used, by path below the root.

    A file that changed after the run began may have been read as it was before: it is recorded so
    that the page runs again.
    """
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ctime_ns > since_ns - CLOCK_GRAIN_NS and not os.path.isdir(path):
                found[os.path.relpath(path, root)] = "changed while the page ran"
                continue
        found[os.path.relpath(path, root)] = fingerprint(path)
    return found


def write_atomically(path: Path, values: Any) -> None:
    """Write JSON so that a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def stage_fingerprint() -> str:
    """Hash of the modules of this stage that decide what outputs look like."""
    here = Path(__file__).parent
    return hashlib.sha256(b"\0".join((here / name).read_bytes() for name in SHAPING_MODULES)).hexdigest()


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


