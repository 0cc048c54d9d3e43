"""`nox -s numbers`: numbers in prose that neither came from a cell nor carry a citation.

A number with a unit, a percentage, or three or more significant digits must be an `{eval}` expression, or stand in
a sentence (a source line) or table row with a citation. Years, versions, labels, code, mathematics and links do not
count; nor do names of models (7B, without a space), powers of two, and what an exercise gives its reader.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^\s*(`{3,}|:{3,})\s*(.*)$")
NOT_PROSE = re.compile(
    r"\{[\w:+-]+\}`[^`]*`|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|https?://\S+|<[^>]*>"
    r"|\b\d[\d.]*[BMK]\b|\bPython \d\.\d+|\b(19|20)\d\d(-\d\d(-\d\d)?)?\b"
)
UNITS = r"%|per cent|GB|GiB|MB|MiB|KB|TB|ms|seconds?|s\b|FLOP\S*|tokens?\b|B\b|M\b"
NUMBER = re.compile(rf"(?<![\w.])(?:\d[\d,]*\.?\d*\s?(?:{UNITS})|\d[\d,]*\.?\d*)")
PROSE_FENCES = ("{admonition}", "{solution-start}", "{note}", "{tip}", "{warning}", "{list-table}")


def significant(text: str) -> int:
    """Digits of a number that carry information.

    >>> significant("1,300"), significant("0.0042"), significant("124.4")
    (2, 2, 4)
    """
    digits = re.sub(r"\D", "", text.split("%")[0])
    return len(digits.lstrip("0").rstrip("0") if "." not in text else digits.lstrip("0"))


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of the lines that are read as prose."""
    inside: list[tuple[str, bool]] = []
    given = False
    lines = text.splitlines()
    start = lines.index("---", 1) + 1 if lines and lines[0] == "---" else 0
    for number, line in enumerate(lines[start:], start + 1):
        fence = FENCE.match(line)
        if fence and fence[2].startswith(("{exercise-start}", "{exercise-end}")):
            given = fence[2].startswith("{exercise-start}")
        if fence and inside and fence[1].startswith(inside[-1][0]) and not fence[2]:
            inside.pop()
        elif fence and (not inside or inside[-1][1]):
            inside.append((fence[1], fence[2].startswith(PROSE_FENCES)))
        elif (
            not given
            and not (inside and not inside[-1][1])
            and not re.match(r"\s*(:[\w-]+:|\([\w-]+\)=|#)", line)
        ):
            yield number, line


def retyped(text: str) -> list[tuple[int, str]]:
    """Line and number of every number in prose without expression or citation.

    >>> retyped("It takes 16.06 GB.")
    [(1, '16.06 GB')]
    >>> retyped("It takes 16.06 GB {cite:p}`key`, and two of the 12 layers.")
    []
    """
    found = []
    for line_number, line in prose(text):
        if "{cite" in line:
            continue
        for match in NUMBER.finditer(NOT_PROSE.sub(" ", line)):
            value = match[0].strip().rstrip(",.")
            if value.replace(",", "").isdigit() and int(value.replace(",", "")).bit_count() == 1:
                continue
            if re.search(r"[^\d,.\s]", value) or significant(value) >= 3:
                found.append((line_number, value))
    return found


def main(book: Path) -> int:
    """Report every page's numbers; the exit code is 1 if there are any."""
    total = 0
    for page in sorted(book.glob("**/*.md")):
        if not page.relative_to(book).parts[0].startswith("_"):
            for line, value in retyped(page.read_text(encoding="utf8")):
                print(f"{page}:{line}: {value}: neither computed here nor cited")
                total += 1
    print(f"{total} numbers in prose are neither computed nor cited")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
