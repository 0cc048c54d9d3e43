"""`nox -s ledger -- OLD.json`: which values of the ledger moved since an earlier build."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def by_id(rows: list[Row]) -> dict[str, Row]:
    """Rows by page and id, or by page and key for verdicts."""
    return {f"{row['page']}: {row.get('id', row.get('key'))}": row for row in rows}


def moved(old: list[Row], new: list[Row]) -> list[str]:
    """One sentence for every row that came, went or changed its value.

    >>> a, b = {"page": "p", "id": "x", "ours": 1.0}, {"page": "p", "id": "x", "ours": 2.0}
    >>> moved([a], [b])
    ['p: x moved from 1.0 to 2.0']
    """
    before, after = by_id(old), by_id(new)
    said = [f"{name} is gone" for name in before.keys() - after.keys()]
    said += [f"{name} is new" for name in after.keys() - before.keys()]
    for name in before.keys() & after.keys():
        was, now = (row.get("ours") for row in (before[name], after[name]))
        if was != now:
            said.append(f"{name} moved from {was} to {now}")
    return sorted(said)


if __name__ == "__main__":
    old, new = (json.loads(Path(name).read_text(encoding="utf8")) for name in sys.argv[1:3])
    print("\n".join(moved(old, new)) or "no value moved")
