"""The stage as a whole: which pages are stale, execute them, take their outputs into the cache.

Decides before anything heavy is imported, so that a build with nothing to do costs next to nothing.
Left out: how a page is run (`forking.py`, `kernels.py`) and how things are kept (`cache.py`).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from execution.cache import (
    CHANGED,
    Cache,
    Key,
    Record,
    changed_since,
    differences,
    fingerprint,
    versions_in_force,
)
from execution.pages import Cell, Page, PageError, code_key, loaded_files, page_paths, read_page
from execution.reports import Progress, busy, report
from execution.watch import Scope

if TYPE_CHECKING:
    from execution.forking import Notes, Result


class Options(argparse.Namespace):
    """How a run is made."""

    book: Path
    cache: Path
    pages: list[str]
    jobs: int = os.cpu_count() or 1
    preload: str = ""
    locks: Path | None = None
    why: str | None = None
    fresh: bool = False
    kernels: bool = False
    cpu_slack: float = 3.0
    wall_slack: float = 1.0

    def root(self) -> Path:
        """The repository: the nearest folder above the book that git knows, else its parent."""
        above = self.book.parents
        return next((folder for folder in above if (folder / ".git").exists()), above[0])


class Stage:
    """One run: what all its pages are compared with, and what has come of it so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.since_ns = time.time_ns()
        self.cache = Cache(options.cache)
        self.root = options.root()
        self.paths = page_paths(options.book)
        self.versions = versions_in_force(options.locks)
        self.fingerprint = functools.cache(fingerprint)  # each file once in a run
        self.executed: set[str] = set()
        self.failures: list[tuple[str, str]] = []  # place and message, whole story

    def bring_up_to_date(self) -> int:
        """Execute what is stale, of the wanted pages only if any are named; the exit code."""
        began = time.monotonic()
        wanted = [page_name(one, self.options.book) for one in self.options.pages]
        try:
            records = self.cache.records()
            for name in () if wanted else records.keys() - self.paths.keys():
                self.cache.forget(name)  # the book no longer has that page
            if stale := self.stale(records, wanted):
                self.execute(stale, records)
            records = self.cache.records()
            self.cache.bring_index_up_to_date(records)
            summary = self.summary(records, time.monotonic() - began)
            self.cache.write_json(self.options.cache / "summary.json", summary)
        except OSError as error:
            print(*(place for place, _ in self.failures), sep="\n")
            print(f"execution: the cache cannot be written: {error}", flush=True)
            return 1
        report(summary, sorted(self.failures))
        return 1 if self.failures else 0

    def stale(self, records: dict[str, Record], wanted: list[str]) -> dict[str, list[str]]:
        """The pages that must run and why; among the wanted ones if there are any."""
        stale = {}
        for name in self.paths.keys() & wanted if wanted else self.paths:
            fresh = ["asked for: --fresh"] if self.options.fresh else []
            if reasons := fresh or self.reasons(name, records.get(name)):
                stale[name] = reasons
            elif (source := self.fingerprint(str(self.paths[name]))) != records[name].source:
                # Prose alone changed: next time the page is not parsed.
                self.cache.write_record(name, replace(records[name], source=source))
        return stale

    def reasons(self, name: str, record: Record | None) -> list[str]:
        """Why a page must run; empty if its outputs still hold."""
        if record is None:
            return ["it has no usable record: never executed, not completed, or damaged"]
        path, code = self.paths[name], record.key["code"]
        if self.fingerprint(str(path)) != record.source:
            try:
                code = code_key(read_page(name, path))
            except PageError:
                return ["the page cannot be read"]
        files = {one: self.fingerprint(f"{self.root}/{one}") for one in record.key["files"]}
        now: Key = {"code": code, "files": files, "versions": self.versions}
        return [text for kind in now for text in differences(kind, record.key[kind], now[kind])]

    def execute(self, stale: dict[str, list[str]], records: dict[str, Record]) -> None:
        """Run the stale pages: those with processes of their own first, then the longest."""
        progress = Progress(len(stale))
        pages: list[Page] = []
        for name in stale:
            self.cache.forget(name)  # from here on nothing shows a former result as a true one
            try:
                pages.append(read_page(name, self.paths[name]))
            except PageError as failure:
                self.fail(name, failure, progress)
        seconds = {name: record.seconds["cpu"] for name, record in records.items()}
        unknown = float("inf")
        pages.sort(key=lambda it: (-it.processes, -seconds.get(it.name, unknown), it.name))
        for result in self.results(pages, progress):
            outcome, page = result.outcome, result.page
            if not isinstance(outcome, PageError):
                try:
                    self.store(page, outcome, result.seconds, stale[page.name])
                except Exception as error:  # a full disk above all: the page will run again
                    outcome = PageError(0, None, f"could not be cached: {error}")
            if isinstance(outcome, PageError):
                self.fail(page.name, outcome, progress, page.cells)
            else:
                self.executed.add(page.name)
                said = f"{result.seconds['wall']:.1f} s, {result.seconds['cpu']:.1f} s of CPU"
                progress.finished(page.name, said)

    def results(self, pages: list[Page], progress: Progress) -> Iterator[Result]:
        """Run pages, by forking or in kernels."""
        options = self.options
        # No source of a page: environments, the cache, this stage, git's own files.
        here, git = Path(__file__).parent, self.root / ".git"
        own = (sys.prefix, sys.base_prefix, options.cache, here, git)
        scope = Scope(str(self.root), tuple(os.path.join(os.path.abspath(one), "") for one in own))
        if options.kernels:
            from execution import kernels

            with tempfile.TemporaryDirectory(prefix="execution-") as notes:
                yield from kernels.run_pages(pages, options, scope, Path(notes))
        else:
            from execution import forking

            yield from forking.run_pages(pages, options, scope, progress)

    def fail(
        self, name: str, error: PageError, progress: Progress, cells: tuple[Cell, ...] = ()
    ) -> None:
        """Keep a failure as `page:line: cell N, line K: message`."""
        line, place = 1, ""
        if error.cell:
            line = cells[error.cell - 1].line + (error.line or 1) - 1
            place = (
                f"cell {error.cell}, line {error.line}: " if error.line else f"cell {error.cell}: "
            )
        shown = f"{os.path.relpath(self.paths[name])}:{line}: {place}{error.message}"
        self.failures.append((shown, error.details))
        progress.finished(name, "failed", failed=True)

    def store(
        self, page: Page, notes: Notes, seconds: dict[str, float], reasons: list[str]
    ) -> None:
        """Write the executed notebook, then the record that makes it valid."""
        hashkey, notebook = notes["hashkey"][0], notes["notebook"][0]
        self.cache.write(self.cache.notebook_path(hashkey), notebook)
        files = self.used_files(notes, loaded_files(page))
        key = {"code": code_key(page), "files": files, "versions": self.versions}
        record = Record(
            source=page.source,
            key=key,
            hashkey=hashkey,
            notebook=hashlib.sha256(notebook.encode()).hexdigest(),
            when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
            shown_versions=notes["version"],
            seconds={**seconds, "budget": page.budget},
            cells=len(page.cells),
            reasons=reasons,
        )
        self.cache.write_record(page.name, record)

    def used_files(self, notes: Notes, loaded: list[str]) -> dict[str, str]:
        """Fingerprints of files and folders (`path/`) that a page used, by path below the root.

        What changed or went after the run began may have been read as it was before: it is recorded
        so that the page runs again. Folders of modules are listed by whatever looks for modules.
        """
        read = {*notes.get("file", ()), *loaded}
        folders = {*notes.get("folder", ())} - {*notes.get("path", ())}
        found = {}
        for path in sorted(read | {*notes.get("missing", ())} | {f"{one}/" for one in folders}):
            now = CHANGED if changed_since(path, self.since_ns) else self.fingerprint(path)
            below = os.path.relpath(path, self.root) + "/" * path.endswith("/")
            found[below] = CHANGED if now == "absent" and path in read else now
        return found

    def summary(self, records: dict[str, Record], stage_seconds: float) -> dict[str, Any]:
        """The whole book's state in one dictionary, for whoever runs the stage."""
        pages = {
            name: {
                "cells": record.cells,
                "cpu_seconds": record.seconds["cpu"],
                "wall_seconds": record.seconds["wall"],
                "budget": record.seconds["budget"],
                "over_budget": record.seconds["cpu"] > record.seconds["budget"],
                "busy": busy(record.seconds),
                "executed": name in self.executed,
                "when": record.when,
                "reasons": record.reasons,
            }
            for name, record in records.items()
        }
        executed = [page for page in pages.values() if page["executed"]]
        return {
            "pages": len(self.paths),
            "executed": len(self.executed),
            "reused": len(pages) - len(self.executed),
            "failed": sorted(place for place, _ in self.failures),
            "cells": sum(page["cells"] for page in pages.values()),
            "cpu_seconds": sum(page["cpu_seconds"] for page in pages.values()),
            "executed_cpu_seconds": sum(page["cpu_seconds"] for page in executed),
            "stage_seconds": stage_seconds,
            "jobs": self.options.jobs,
            "per_page": pages,
        }

    def explain(self, wanted: str) -> None:
        """Say why a page ran last time, and whether and why it would run now."""
        name = page_name(wanted, self.options.book)
        if name not in self.paths:
            print(f"{name} has no code cell: there is nothing to execute")
            return
        record = self.cache.record(name)
        if record is not None:
            print(f"{name} was executed on {record.when} UTC because:", *record.reasons, sep="\n  ")
            print("it used these files and folders of the repository:", end="")
            print("", *(sorted(record.key["files"]) or ["none"]), sep="\n  ")
        if reasons := self.reasons(name, record):
            print("it would run now because:", *reasons, sep="\n  ")
        else:
            print("nothing has changed: its outputs are reused")


def page_name(wanted: str, book: Path) -> str:
    """The page that a word on the command line means: its name, or its path."""
    path = Path(wanted).resolve()
    name = path.relative_to(book).with_suffix("").as_posix() if path.is_relative_to(book) else ""
    for candidate in (wanted, name):
        if (book / f"{candidate}.md").is_file():
            return candidate
    raise SystemExit(f"execution: the book has no page {wanted!r}")
