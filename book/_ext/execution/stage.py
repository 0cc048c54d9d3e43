"""The stage as a whole: which pages are stale, execute them, take their outputs into the cache.

Decides before anything heavy is imported, so that a build with nothing to do costs next to nothing.
Left out: how a page is run (`forking.py`, `kernels.py`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
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
from execution.pages import Page, PageError, page_paths, read_page, shown_path
from execution.reports import Failure, Progress, page_summary
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
class Plan:
    """Every page of the book, and why those that must run must."""

    paths: dict[str, Path]
    reasons: dict[str, list[str]]
    seconds: dict[str, float]


@dataclass
class Outcome:
    """What a run did."""

    executed: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def execute_book(options: Options, wanted: list[str]) -> int:
    """Bring the cache up to date (for the `wanted` pages only, if any are named); the exit code."""
    since_ns = time.time_ns()
    began = time.monotonic()
    cache = Cache(options.cache)
    lock = hold_lock(
        options.cache, shared=False, waiting=lambda: print("execution: waiting for another build", flush=True)
    )
    try:
        fingerprint = caching.remembering(caching.file_fingerprint)
        key = Key(options.root, caching.versions_in_force(options.locks), caching.stage_fingerprint())
        plan = plan_run(options, cache, key, fingerprint, wanted)
        outcome = Outcome()
        if plan.reasons:
            execute(plan, options, cache, key, since_ns=since_ns, fingerprint=fingerprint, outcome=outcome, lock=lock)
            cache.remove_unused_notebooks()
        summary = summarize(plan, cache, outcome, options, stage_seconds=time.monotonic() - began)
        caching.write_atomically(options.cache / "summary.json", summary)
    finally:
        os.close(lock)
    report(summary, outcome)
    return 1 if outcome.failures else 0


def plan_run(
    options: Options, cache: Cache, key: Key, fingerprint: Callable[[str], str], wanted: list[str]
) -> Plan:
    """Decide which pages run."""
    paths = dict(page_paths(options.book, exclude=options.exclude))
    named = [name_of(one, options.book) for one in wanted] or list(paths)
    names = [name for name in named if name in paths]  # a page without code has nothing to execute
    known = cache.known_hashkeys()
    if not wanted:
        cache.forget_pages_other_than(set(paths))
    former_seconds = seconds_of_last_run(options.cache)
    reasons: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for name in names:
        record = cache.record(name)
        why = caching.reasons_to_execute(
            name, paths[name], record, key=key, cache=cache, fingerprint=fingerprint, known=known
        )
        if options.fresh:
            why = ["asked for: --fresh"]
        if why:
            reasons[name] = why
            seconds[name] = record.seconds["cpu"] if record else former_seconds.get(name, float("inf"))
        elif record is not None and record.source != caching.file_fingerprint(str(paths[name])):
            cache.write_record(name, replace(record, source=caching.file_fingerprint(str(paths[name]))))
    return Plan(paths, reasons, seconds)


def seconds_of_last_run(folder: Path) -> dict[str, float]:
    """CPU seconds by page from the last summary, to start the longest first; nothing depends on them."""
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


def execute(
    plan: Plan,
    options: Options,
    cache: Cache,
    key: Key,
    *,
    since_ns: int,
    fingerprint: Callable[[str], str],
    outcome: Outcome,
    lock: int,
) -> None:
    """Run the stale pages: those with processes of their own first, then the longest."""
    progress = Progress(total=len(plan.reasons))
    pages: list[Page] = []
    sources: dict[str, str] = {}
    for name in plan.reasons:
        # From here to its new record, nothing may show the page's former results as true.
        cache.forget(name)
        text = plan.paths[name].read_bytes()
        sources[name] = hashlib.sha256(text).hexdigest()
        try:
            pages.append(read_page(name, plan.paths[name], text.decode("utf-8")))
        except PageError as error:
            outcome.failures.append(Failure(name, str(error)))
            progress.finished(name, seconds={}, failure=str(error))
    pages.sort(key=lambda page: (-page.processes, -plan.seconds[page.name], page.name))

    def conclude(
        page: Page, done: dict[str, Any] | None, failure: Failure | None, seconds: dict[str, float]
    ) -> None:
        if done is not None:
            try:
                record = store(page, done, seconds, cache, key, since_ns=since_ns, fingerprint=fingerprint)
                record = replace(record, source=sources[page.name], reasons=tuple(plan.reasons[page.name]))
                cache.write_record(page.name, record)
                outcome.executed.append(page.name)
            except Exception as error:  # a full disk above all; the page has no record and will run again
                failure = Failure(page.name, f"{shown_path(page.path)}:1: could not be cached: {error}")
        if failure is not None:
            outcome.failures.append(failure)
        progress.finished(page.name, seconds=seconds, failure=failure.summary if failure else None)

    with tempfile.TemporaryDirectory(prefix="execution-") as notes:
        scope = Scope(str(options.root), ignored_folders(options), notes)
        if options.kernels:
            from execution.kernels import run_pages_in_kernels

            run_pages_in_kernels(pages, conclude, jobs=options.jobs, scope=scope, limits=options.limits)
        else:
            run_pages(
                pages,
                conclude,
                jobs=options.jobs,
                preload=options.preload,
                scope=scope,
                limits=options.limits,
                progress=progress,
                lock=lock,
            )
    progress.end()


def ignored_folders(options: Options) -> tuple[str, ...]:
    """Folders whose files are no source of any page: environments, the cache, this stage, git's own."""
    folders = (sys.prefix, sys.base_prefix, options.cache, Path(__file__).parent, options.root / ".git")
    return tuple(f"{os.path.abspath(folder)}{os.sep}" for folder in folders)


def store(
    page: Page,
    done: dict[str, Any],
    seconds: dict[str, float],
    cache: Cache,
    key: Key,
    *,
    since_ns: int,
    fingerprint: Callable[[str], str],
) -> Record:
    """Write the executed notebook; the record that will make it valid."""
    from execution.outputs import glue_output

    glue = [glue_output(text, value) for text, value in done["values"].items()]
    hashkey, notebook = cache.store(page, done["cells"], glue)
    after = {"root": key.root, "since_ns": since_ns}
    files = [*done["used"]["file"], *map(str, page.loads)]
    return Record(
        source="",
        code=caching.code_key(page),
        files=caching.fingerprints_after_run(files, fingerprint=fingerprint, **after),
        folders=caching.fingerprints_after_run(
            done["used"]["folder"], fingerprint=caching.folder_fingerprint, **after
        ),
        versions=key.versions,
        stage=key.stage,
        hashkey=hashkey,
        notebook=notebook,
        stamp={
            "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
            "versions": done["versions"],
        },
        seconds={**seconds, "budget": page.budget},
        cells=len(page.cells),
    )


def summarize(
    plan: Plan, cache: Cache, outcome: Outcome, options: Options, *, stage_seconds: float
) -> dict[str, Any]:
    """The whole book's state in one dictionary, for whoever runs the stage."""
    records = {name: cache.record(name) for name in plan.paths}
    pages = {
        name: page_summary(record, executed=name in outcome.executed)
        for name, record in records.items()
        if record is not None
    }
    return {
        "pages": len(plan.paths),
        "executed": len(outcome.executed),
        "reused": len(pages) - len(outcome.executed),
        "failed": [failure.summary for failure in outcome.failures],
        "cells": sum(page["cells"] for page in pages.values()),
        "cpu_seconds": sum(page["cpu_seconds"] for page in pages.values()),
        "executed_cpu_seconds": sum(page["cpu_seconds"] for page in pages.values() if page["executed"]),
        "stage_seconds": stage_seconds,
        "jobs": options.jobs,
        "per_page": pages,
    }


def report(summary: dict[str, Any], outcome: Outcome) -> None:
    """Say in a line what was done, and in full what failed."""
    for failure in outcome.failures:
        if failure.details:
            print(f"\n{failure.summary}\n{shortened(failure.details)}\n", flush=True)
    over = [f"{name} ({page['cpu_seconds']:.0f} s)" for name, page in summary["per_page"].items() if page["over_budget"]]
    if over:
        print(f"execution: over budget, within the slack: {', '.join(over)}")
    print(
        f"execution: {summary['executed']} pages executed, {summary['reused']} reused, "
        f"{len(outcome.failures)} failed, {summary['stage_seconds']:.1f} s",
        flush=True,
    )
    for failure in outcome.failures:
        print(failure.summary, flush=True)


def shortened(details: str, *, head: int = 12, tail: int = 24) -> str:
    """A traceback without its middle, which is most often a library's."""
    lines = details.rstrip().splitlines()
    if len(lines) > head + tail + 1:
        lines = [*lines[:head], f"  ... {len(lines) - head - tail} lines ...", *lines[-tail:]]
    return "\n".join(lines)


def explain(options: Options, wanted: str) -> int:
    """Say why a page ran last time, and whether and why it would run now."""
    cache = Cache(options.cache)
    paths = dict(page_paths(options.book, exclude=options.exclude))
    name = name_of(wanted, options.book)
    if name not in paths:
        print(f"{name} has no code cell: there is nothing to execute")
        return 0
    record = cache.record(name)
    key = Key(options.root, caching.versions_in_force(options.locks), caching.stage_fingerprint())
    reasons = caching.reasons_to_execute(
        name,
        paths[name],
        record,
        key=key,
        cache=cache,
        fingerprint=caching.file_fingerprint,
        known=cache.known_hashkeys(),
    )
    if record is not None:
        print(f"{name} was executed on {record.stamp['when']} UTC because:")
        print("".join(f"  {reason}\n" for reason in record.reasons), end="")
        used = [*record.files, *(f"{folder}/ (its list of names)" for folder in record.folders)]
        print(f"it used {len(used)} files of the repository:")
        print("".join(f"  {path}\n" for path in sorted(used)), end="")
    print("it would run now because:" if reasons else "nothing has changed since: its outputs are reused")
    print("".join(f"  {reason}\n" for reason in reasons), end="")
    return 0
