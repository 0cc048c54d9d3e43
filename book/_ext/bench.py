"""`nox -s bench`: how fast things are against their peers, measured in the same run, stored with machine and date.

A row is a function under `@row` that gives the seconds of ours and of the peer, one pair a round; rows stand in
`bench_rows.py`. The ratio of the medians is what counts: it survives another machine, seconds do not.
`book/benchmarks/rows.json` keeps each row's last run; the book's performance page is drawn from it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "book" / "benchmarks" / "rows.json"
PACKAGES = ("torch", "sphinx", "myst-nb", "tokenizers")

Pairs = tuple[list[float], list[float]]  # seconds of ours, seconds of the peer, by round


@dataclass(frozen=True)
class Row:
    """What is measured, against what, and the ratio that is promised: at most so much, and so many seconds more."""

    name: str
    ours: str
    peer: str
    measure: Callable[[int], Pairs]
    at_most: float | None = None
    seconds_more: float = 0.0
    once: bool = False  # too long for more than one round


ROWS: dict[str, Row] = {}


def row(
    name: str, ours: str, peer: str, **limits: Any
) -> Callable[[Callable[[int], Pairs]], Callable[[int], Pairs]]:
    """Register a function of the number of rounds as a row of the table."""

    def register(measure: Callable[[int], Pairs]) -> Callable[[int], Pairs]:
        ROWS[name] = Row(name, ours, peer, measure, **limits)
        return measure

    return register


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes on the clock."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def interleaved(rounds: int, ours: Callable[[], object], peer: Callable[[], object]) -> Pairs:
    """Both in turn, so that what disturbs the machine disturbs both."""
    pairs = [(seconds(ours), seconds(peer)) for _ in range(rounds)]
    return [one for one, _ in pairs], [two for _, two in pairs]


def verdict(row: Row, ours: list[float], peer: list[float]) -> dict[str, Any]:
    """The stored form of a measured row.

    >>> one = Row("x", "ours", "peer", lambda rounds: ([], []), at_most=1.15, seconds_more=5)
    >>> found = verdict(one, [20.0, 30.0, 10.0], [10.0, 11.0, 12.0])
    >>> found["ratio"], found["holds"]
    (1.82, False)
    """
    mine, theirs = median(ours), median(peer)
    limit = None if row.at_most is None else row.at_most * theirs + row.seconds_more
    return {
        "ours": row.ours,
        "peer": row.peer,
        "ours_seconds": [round(one, 3) for one in ours],
        "peer_seconds": [round(one, 3) for one in peer],
        "ratio": float(f"{mine / theirs:.3g}"),
        "at_most": row.at_most,
        "seconds_more": row.seconds_more,
        "holds": None if limit is None else mine <= limit,
    }


def circumstances() -> dict[str, Any]:
    """Machine, date, versions, and how busy the machine was before."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf8").splitlines() if cpu.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "system": platform.system(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{one: version(one) for one in PACKAGES},
        },
        "load_before": round(os.getloadavg()[0], 1),
    }


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the printed table."""
    promise = "" if found["at_most"] is None else f"at most {found['at_most']:g}"
    promise += f" + {found['seconds_more']:g} s" if found["seconds_more"] else ""
    held = {None: "", True: "holds", False: "DOES NOT HOLD"}[found["holds"]]
    mine, theirs = median(found["ours_seconds"]), median(found["peer_seconds"])
    return f"{name:22} {mine:8.2f} s {theirs:8.2f} s {found['ratio']:8.3g}  {promise:18} {held}"


def main(words: list[str]) -> int:
    """Measure the named rows, or all; store them; 1 if a promise does not hold."""
    import bench_rows  # noqa: F401  (it registers the rows)

    rounds = 1 if "--quick" in words else 5
    wanted = [word for word in words if not word.startswith("-")] or list(ROWS)
    if unknown := set(wanted) - ROWS.keys():
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    kept = json.loads(STORE.read_text(encoding="utf8")) if STORE.exists() else {}
    print(f"{'':22} {'ours':>10} {'peer':>10} {'ratio':>8}", flush=True)
    held = True
    for name in wanted:
        where = circumstances()
        found = {
            **verdict(ROWS[name], *ROWS[name].measure(1 if ROWS[name].once else rounds)),
            **where,
        }
        kept[name] = found
        held = held and found["holds"] is not False
        print(line(name, found), flush=True)
    STORE.parent.mkdir(exist_ok=True)
    ordered = {name: kept[name] for name in ROWS if name in kept}
    STORE.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.modules["bench"] = sys.modules["__main__"]  # the rows register here
    sys.exit(main(sys.argv[1:]))
