"""What a page prints, number by number: read from its executed notebook, and compared with another run's.

Printed are the texts of outputs, the labels of figures (not their curves) and the values of expressions in prose.
`digits.py` compares runs on other instruction sets, `verify.py` the reader's run with the book's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
LABEL = re.compile(r"<!-- (.*?) -->")
RELATIVE = Decimal("1e-3")  # of a number that may differ on another machine

Texts = dict[str, str]  # by place: `cell 3`, `{eval} f"{x:.2f}"`


@dataclass(frozen=True)
class Difference:
    """Two lines that should be the same, and the pairs of their numbers that are not."""

    place: str
    line: str
    other: str
    numbers: tuple[tuple[str, str], ...] = ()

    @property
    def within(self) -> bool:
        """Whether only numbers differ, each in its last printed digit or by 0.1 % at most."""
        return bool(self.numbers) and all(near(one, two) for one, two in self.numbers)

    def __str__(self) -> str:
        how = [f"{one} / {two}: {said(agreeing(one, two))}" for one, two in self.numbers]
        return (
            f"{self.place}: {'; '.join(how) or 'the text differs'}\n  {self.line}\n  {self.other}"
        )


def said(digits: int) -> str:
    """A count of digits in words.

    >>> said(1)
    '1 digit agrees'
    """
    return f"{digits} digit agrees" if digits == 1 else f"{digits or 'no'} digits agree"


def executed(cache: Path, page: str) -> Any:
    """The notebook of a page's last execution."""
    try:
        record = json.loads((cache / "pages" / f"{page}.json").read_bytes())
        return json.loads((cache / "executed" / record["hashkey"] / "base.ipynb").read_bytes())
    except FileNotFoundError as error:
        raise SystemExit(f"{page} has no outputs in {cache.name}: build it first") from error


def texts(notebook: Any) -> Texts:
    """All that a page prints, by place."""
    found: Texts = {}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        shown = []
        for output in cell["outputs"]:
            named = output.get("metadata", {}).get("scrapbook")
            if named:
                value = output["data"].get(f"{named['mime_prefix']}text/plain", "")
                found[f"{{eval}} {named['name']}"] = joined(value)
            else:
                shown.append(text_of(output))
        if any(shown):
            found[f"cell {number}"] = "".join(shown).rstrip()
    return found


def text_of(output: dict[str, Any]) -> str:
    """An output as text: what was printed, a value's plain form, the labels of a figure."""
    if output["output_type"] == "stream":
        return joined(output["text"])
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return "\n".join(LABEL.findall(joined(data["image/svg+xml"]))) + "\n"
    return joined(data.get("text/plain", output.get("evalue", ""))) + "\n"


def joined(text: str | list[str]) -> str:
    """A text that a notebook may keep as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def differences(ours: Texts, theirs: Texts) -> Iterator[Difference]:
    """Every line that differs, by place."""
    for place in ours | theirs:
        one, two = (side.get(place, "") for side in (ours, theirs))
        lines = list(zip(one.splitlines(), two.splitlines(), strict=False))
        if len(one.splitlines()) != len(two.splitlines()):
            yield Difference(place, f"{one!r}", f"{two!r}")
        else:
            yield from (compared(place, *pair) for pair in lines if pair[0] != pair[1])


def compared(place: str, line: str, other: str) -> Difference:
    """How two lines differ: in their numbers alone, or in their words too.

    >>> compared("cell 1", "loss 2.4713 at 10", "loss 2.4728 at 10").numbers
    (('2.4713', '2.4728'),)
    """
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (line, other)]
    pairs = zip(NUMBER.findall(line), NUMBER.findall(other), strict=False)
    numbers = tuple(pair for pair in pairs if pair[0] != pair[1]) if words[0] == words[1] else ()
    return Difference(place, line.strip(), other.strip(), numbers)


def value(number: str) -> Decimal:
    """A printed number."""
    return Decimal(number.replace(",", "").replace("−", "-"))


def agreeing(one: str, two: str) -> int:
    """How many significant digits two printed numbers have in common when both are rounded to so many.

    >>> agreeing("0.0788367", "0.0788371"), agreeing("0.9999", "1.0001"), agreeing("3e-16", "2e-16")
    (5, 3, 0)
    """
    numbers = [value(text) for text in (one, two)]
    for digits in range(len(numbers[0].as_tuple().digits), 0, -1):
        rounding = Context(prec=digits, rounding=ROUND_HALF_EVEN)
        if rounding.plus(numbers[0]) == rounding.plus(numbers[1]):
            return digits
    return 0


def near(one: str, two: str) -> bool:
    """Whether numbers differ by one in the last printed digit, or by a thousandth, at most.

    >>> near("2.47", "2.48"), near("2.47", "2.49"), near("16,384.5", "16,385.9")
    (True, False, True)
    """
    ours, theirs = value(one), value(two)
    step = Decimal(1).scaleb(max(ours.as_tuple().exponent, theirs.as_tuple().exponent))  # type: ignore[type-var]
    return abs(ours - theirs) <= max(step, RELATIVE * max(abs(ours), abs(theirs)))
