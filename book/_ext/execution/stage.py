"""The stage as a whole: which pages are stale, execute them, take their outputs into the cache.

Decides before anything heavy is imported, so that a build with nothing to do costs next to nothing.
Left out: how a page is run (`forking.py`, `kernels.py`) and what makes it stale (`cache.py`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from execution import cache as caching
from execution.cache import Cache, Key, Record
from execution.forking import Limits, run_pages
from execution.locking import hold_lock
from execution.pages import Page, PageError, code_key, page_paths, read_page, shown_path
from execution.reports import Failure, Progress, page_summary, report
from execution.watch import Scope


@dataclass(frozen=True)
class Options:
    """How a run is made."""

    book: Path
    cache: Path
    root: Path
    jobs: int = 1
    preload: tuple[str, ...] = ()
    locks: Path | None = None
    exclude: tuple[str, ...] = ()
    fresh: bool = False
    kernels: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Run:
    """One run: its options, the cache, and what all its pages are compared with."""

    options: Options
    cache: Cache
    key: Key
    since_ns: int
    fingerprint: Callable[[str], str]


@dataclass(frozen=True)
class Plan:
    """Every page of the book; why those that must run must, and how long they took before."""

    paths: dict[str, Path]
    reasons: dict[str, list[str]]
    seconds: dict[str, float]


@dataclass
class Outcome:
    """What a run did."""

    executed: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def new_run(options: Options) -> Run:
    """A run that starts now."""
    return Run(
        options,
        Cache(options.cache),
        Key(options.root, caching.versions_in_force(options.locks), caching.stage_fingerprint()),
        time.time_ns(),
        caching.remembering(caching.file_fingerprint),
    )


def execute_book(options: Options, wanted: list[str]) -> int:
    """Bring the cache up to date, for the `wanted` pages only if any are named; the exit code."""
    began = time.monotonic()
    try:
        lock = hold_lock(options.cache, shared=False, waiting=say_that_another_build_runs)
        try:
            run = new_run(options)
            plan = plan_run(run, wanted)
            outcome = Outcome()
            if plan.reasons:
                execute(run, plan, outcome, lock)
            run.cache.bring_index_up_to_date()
            summary = summary_of(run, plan, outcome, stage_seconds=time.monotonic() - began)
            caching.write_json(options.cache / "summary.json", summary)
        finally:
            os.close(lock)
    except (OSError, sqlite3.Error) as error:
        print(f"execution: the cache cannot be written: {error}", flush=True)
        return 1
    report(summary, sorted(outcome.failures, key=lambda failure: failure.page))
    return 1 if outcome.failures else 0


def say_that_another_build_runs() -> None:
    """Tell why nothing happens."""
    print("execution: waiting for another build", flush=True)


def plan_run(run: Run, wanted: list[str]) -> Plan:
    """Decide which pages run."""
    options, cache = run.options, run.cache
    paths = dict(page_paths(options.book, exclude=options.exclude))
    named = [name_of(one, options.book) for one in wanted] or list(paths)
    if not wanted:
        cache.forget_pages_other_than(set(paths))
    plan = Plan(paths, {}, seconds_of_last_run(options.cache))
    for name in named:
        if name not in paths:
            continue  # a page without code has nothing to execute
        record = cache.record(name)
        reasons = ["asked for: --fresh"] if options.fresh else []
        reasons = reasons or reasons_of(run, name, paths[name], record)
        if reasons:
            plan.reasons[name] = reasons
        elif record is not None:
            source = caching.file_fingerprint(str(paths[name]))
            if source != record.source:  # prose alone changed: next time the page is not parsed
                cache.write_record(name, replace(record, source=source))
    return plan


def reasons_of(run: Run, name: str, path: Path, record: Record | None) -> list[str]:
    """Why a page must run; empty if its outputs still hold."""
    return caching.reasons_to_execute(
        name,
        path,
        record,
        key=run.key,
        cache=run.cache,
        fingerprint=run.fingerprint,
    )


def seconds_of_last_run(folder: Path) -> dict[str, float]:
    """CPU seconds by page from the last summary; only the order of pages depends on them."""
    try:
        pages = json.loads((folder / "summary.json").read_bytes())["per_page"]
        return {name: float(page["cpu_seconds"]) for name, page in pages.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def name_of(wanted: str, book: Path) -> str:
    """The page that a word on the command line means: its name, or its path."""
    path = Path(wanted).resolve()
    name = path.relative_to(book).with_suffix("").as_posix() if path.is_relative_to(book) else ""
    for candidate in (wanted, name):
        if (book / f"{candidate}.md").is_file():
            return candidate
    raise SystemExit(f"execution: the book has no page {wanted!r}")


def execute(run: Run, plan: Plan, outcome: Outcome, lock: int) -> None:
    """Run the stale pages: those with processes of their own first, then the longest."""
    progress = Progress(total=len(plan.reasons))
    pages, sources = read_pages(run, plan, outcome, progress)
    unknown = float("inf")
    pages.sort(key=lambda it: (-it.processes, -plan.seconds.get(it.name, unknown), it.name))

    def conclude(
        page: Page, done: dict[str, Any] | None, failure: Failure | None, seconds: dict[str, float]
    ) -> None:
        if done is not None:
            failure = store(run, page, done, seconds, sources[page.name], plan.reasons[page.name])
        if failure is None:
            outcome.executed.append(page.name)
        else:
            outcome.failures.append(failure)
        progress.finished(page.name, seconds=seconds, failed=failure is not None)

    options = run.options
    with tempfile.TemporaryDirectory(prefix="execution-") as notes:
        scope = Scope(str(options.root), ignored_folders(options), notes)
        jobs, limits = options.jobs, options.limits
        if options.kernels:
            from execution.kernels import run_pages_in_kernels

            run_pages_in_kernels(pages, conclude, jobs=jobs, scope=scope, limits=limits)
        else:
            run_pages(
                pages,
                conclude,
                jobs=jobs,
                preload=options.preload,
                scope=scope,
                limits=limits,
                progress=progress,
                lock=lock,
            )
    progress.end()


def read_pages(
    run: Run, plan: Plan, outcome: Outcome, progress: Progress
) -> tuple[list[Page], dict[str, str]]:
    """The pages that will run, and the fingerprints of their texts; unreadable ones are failures.

    Their former records go: from here on nothing may show a former result as a true one.
    """
    pages: list[Page] = []
    sources: dict[str, str] = {}
    for name in plan.reasons:
        run.cache.forget(name)
        content = plan.paths[name].read_bytes()
        sources[name] = hashlib.sha256(content).hexdigest()
        try:
            pages.append(read_page(name, plan.paths[name], content))
        except PageError as error:
            outcome.failures.append(Failure(name, str(error)))
            progress.finished(name, seconds={}, failed=True)
    return pages, sources


def ignored_folders(options: Options) -> tuple[str, ...]:
    """Folders whose files are no source of a page: environments, the cache, this stage, git's."""
    own = Path(__file__).parent
    folders = (sys.prefix, sys.base_prefix, options.cache, own, options.root / ".git")
    return tuple(f"{os.path.abspath(folder)}{os.sep}" for folder in folders)


def store(
    run: Run,
    page: Page,
    done: dict[str, Any],
    seconds: dict[str, float],
    source: str,
    reasons: list[str],
) -> Failure | None:
    """Write the executed notebook, then the record that makes it valid; a failure if that fails."""
    try:
        notebook = run.cache.store(done["hashkey"], done["notebook"])
        record = Record(
            source=source,
            code=code_key(page),
            files=caching.fingerprints_of_files(
                [*done["used"]["file"], *map(str, page.loads)],
                missing=done["used"]["missing"],
                root=run.key.root,
                since_ns=run.since_ns,
                fingerprint=run.fingerprint,
            ),
            folders=caching.fingerprints_of_folders(
                done["used"]["folder"], root=run.key.root, since_ns=run.since_ns
            ),
            versions=run.key.versions,
            stage=run.key.stage,
            hashkey=done["hashkey"],
            notebook=notebook,
            stamp={
                "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
                "versions": done["versions"],
            },
            reasons=tuple(reasons),
            seconds={**seconds, "budget": page.budget},
            cells=len(page.cells),
        )
        run.cache.write_record(page.name, record)
    except Exception as error:  # a full disk above all; without a record the page will run again
        return Failure(page.name, f"{shown_path(page.path)}:1: could not be cached: {error}")
    return None


def summary_of(run: Run, plan: Plan, outcome: Outcome, *, stage_seconds: float) -> dict[str, Any]:
    """The whole book's state in one dictionary, for whoever runs the stage."""
    records = {name: run.cache.record(name) for name in plan.paths}
    pages = {
        name: page_summary(record, executed=name in outcome.executed)
        for name, record in records.items()
        if record is not None
    }
    executed = [page for page in pages.values() if page["executed"]]
    return {
        "pages": len(plan.paths),
        "executed": len(outcome.executed),
        "reused": len(pages) - len(outcome.executed),
        "failed": [failure.summary for failure in outcome.failures],
        "cells": sum(page["cells"] for page in pages.values()),
        "cpu_seconds": sum(page["cpu_seconds"] for page in pages.values()),
        "executed_cpu_seconds": sum(page["cpu_seconds"] for page in executed),
        "stage_seconds": stage_seconds,
        "jobs": run.options.jobs,
        "per_page": pages,
    }


def explain(options: Options, wanted: str) -> int:
    """Say why a page ran last time, and whether and why it would run now."""
    name = name_of(wanted, options.book)
    paths = dict(page_paths(options.book, exclude=options.exclude))
    if name not in paths:
        print(f"{name} has no code cell: there is nothing to execute")
        return 0
    run = new_run(options)
    record = run.cache.record(name)
    reasons = reasons_of(run, name, paths[name], record)
    if record is not None:
        print(f"{name} was executed on {record.stamp['when']} UTC because:")
        print("".join(f"  {reason}\n" for reason in record.reasons), end="")
        sources = [*record.files, *(f"{folder} (the names in it)" for folder in record.folders)]
        print("it used these files of the repository:" if sources else "it used no file")
        print("".join(f"  {path}\n" for path in sorted(sources)), end="")
    print("it would run now because:" if reasons else "nothing has changed: its outputs are reused")
    print("".join(f"  {reason}\n" for reason in reasons), end="")
    return 0
