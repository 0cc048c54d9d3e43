"""`nox -s pdf`: what the log of XeLaTeX must not hold: missing characters, undefined references, wide boxes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

WIDEST = 5.0  # points
FAULTS = {
    "missing character": re.compile(r"Missing character: .*"),
    "undefined": re.compile(r"LaTeX Warning: .*undefined.*|LaTeX Font Warning: .*undefined.*"),
}
OVERFULL = re.compile(r"Overfull \\hbox \(([\d.]+)pt too wide\)(.*)")


def faults(log: str) -> list[str]:
    r"""Every fault of the log, one line each.

    >>> faults("Overfull \\hbox (4.9pt too wide) in paragraph\nOverfull \\hbox (5.2pt too wide) at lines 1--2")
    ['overfull box: 5.2 pt at lines 1--2']
    """
    found = [f"{name}: {match[0]}" for name, rule in FAULTS.items() for match in rule.finditer(log)]
    found += [
        f"overfull box: {m[1]} pt{m[2]}" for m in OVERFULL.finditer(log) if float(m[1]) > WIDEST
    ]
    return found


if __name__ == "__main__":
    path = Path(sys.argv[1])
    found = faults(path.read_text(encoding="utf8", errors="replace"))
    print("\n".join(f"{path}: {fault}" for fault in found))
    sys.exit(int(bool(found)))
