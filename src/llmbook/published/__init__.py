"""Numbers that others printed, as data, and the two calls with which a page answers for its own.

`check(ours, id)` compares a number that the page computed with a printed one; `verdict(key, ...)` says what the
book found about an entry of the collection. Both return a row that shows as a small box, travels in the cell's
output, and is gathered in the ledger. A number out of tolerance raises, so the build fails.

Page: ledger. The numbers stand in the `*.toml` files beside this module, one `[[number]]` each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, Literal

MIME = "application/vnd.llmbook+json"

Kind = Literal["identity", "count", "prediction"]
Finding = Literal["confirmed", "corrected", "not checkable"]


class OutOfToleranceError(AssertionError):
    """A number that the book computed does not meet the printed one."""


@dataclass(frozen=True)
class Number:
    """A number as it was printed, with its place.

    `kind` says what agreement means: *identity* recomputes the formula of the text that prints the number,
    *count* is independent of it, *prediction* was made without having seen it.
    A `misprint` is known to be wrong and says why; then agreement would be the fault.
    """

    id: str
    value: str
    unit: str
    source: str  # citation key
    where: str  # table, equation or section
    kind: Kind
    what: str  # the quantity in words
    tolerance: str = ""  # absolute, in the unit; half of the last printed digit where none is given
    note: str = ""
    misprint: str = ""
    unchecked: str = ""  # why no page checks it

    @property
    def theirs(self) -> float:
        """The printed value."""
        return float(self.value)

    @property
    def allowed(self) -> float:
        """The absolute difference that counts as agreement.

        >>> Number("x", "31.4", "GB", "key", "Table 1", "identity", "state").allowed
        0.05
        """
        if self.tolerance:
            return float(self.tolerance)
        exponent = Decimal(self.value).as_tuple().exponent
        assert isinstance(exponent, int), f"{self.id} prints no finite number"
        return float(Decimal(5).scaleb(exponent - 1))


@dataclass(frozen=True)
class Check:
    """One comparison of the book's number with a printed one."""

    number: Number
    ours: float

    @property
    def relative_error(self) -> float:
        """(ours - theirs) / theirs."""
        theirs = self.number.theirs
        return (self.ours - theirs) / theirs if theirs else float(self.ours != 0)

    @property
    def agrees(self) -> bool:
        """Whether the two differ by no more than the tolerance (with a grain for floating point)."""
        return abs(self.ours - self.number.theirs) <= self.number.allowed * (1 + 1e-9) + 1e-12

    def row(self) -> dict[str, Any]:
        """The row as the ledger keeps it: plain data."""
        number = self.number
        return {
            "type": "check", "id": number.id, "what": number.what, "ours": self.ours, "theirs": number.value,
            "unit": number.unit, "source": number.source, "where": number.where, "kind": number.kind,
            "relative_error": self.relative_error, "tolerance": number.allowed, "agrees": self.agrees,
            "note": number.note, "misprint": number.misprint,
        }  # fmt: skip

    def __str__(self) -> str:
        number, sign = self.number, "=" if self.agrees else "≠"
        return (
            f"{number.what}: ours {shown(self.ours)} {sign} printed {shown_as_printed(number.value)} "
            f"{number.unit} ({number.source}, {number.where}; {number.kind})"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": str(self), MIME: self.row()}


@dataclass(frozen=True)
class Checks:
    """Several comparisons, shown as one table."""

    checks: tuple[Check, ...]

    def row(self) -> dict[str, Any]:
        """The rows as the ledger keeps them: plain data."""
        return {"type": "checks", "rows": [check.row() for check in self.checks]}

    def __str__(self) -> str:
        return "\n".join(str(check) for check in self.checks)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": str(self), MIME: self.row()}


@dataclass(frozen=True)
class Verdict:
    """What the book found about one claim of an entry of the collection."""

    key: str
    claim: str
    finding: Finding
    because: str
    ours: str = ""

    def row(self) -> dict[str, Any]:
        """The row as the checked collection keeps it: plain data."""
        return {"type": "verdict", **self.__dict__}

    def __str__(self) -> str:
        return f"{self.key}: {self.claim} {self.finding}: {self.because}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": str(self), MIME: self.row()}


@cache
def numbers() -> dict[str, Number]:
    """Every published number by its id.

    Raises:
        ValueError: if an id stands twice.
    """
    found: dict[str, Number] = {}
    for file in sorted(files("llmbook.published").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".toml"):
            continue
        for fields in tomllib.loads(file.read_text(encoding="utf8")).get("number", []):
            if fields["id"] in found:
                raise ValueError(
                    f"id {fields['id']!r} stands twice in the published numbers; ids are unique"
                )
            found[fields["id"]] = Number(**fields)
    return found


def number(id: str) -> Number:
    """The published number of this id.

    Raises:
        KeyError: if there is none; the message lists the nearest.
    """
    if id not in numbers():
        near = get_close_matches(id, numbers(), n=3, cutoff=0.3)
        raise KeyError(
            f"no published number has the id {id!r}; the nearest are {', '.join(near) or 'none'}"
        )
    return numbers()[id]


def check(ours: float, id: str) -> Check:
    """Compare a number with the printed one of this id, in the printed unit.

    Raises:
        KeyError: if no published number has this id.
        OutOfToleranceError: if the two differ by more than the tolerance, or if they agree although the printed
            one stands as a misprint.

    >>> str(check(31.40625, "zero.figure1.stage1")).startswith("state per device, stage 1: ours 31.41 = printed 31.4")
    True
    """
    result = Check(number(id), float(ours))
    if result.agrees == bool(result.number.misprint):
        said = (
            "agrees with a number that stands as a misprint"
            if result.agrees
            else "is out of tolerance"
        )
        raise OutOfToleranceError(f"{result} {said} (allowed difference {result.number.allowed:g})")
    return result


def check_all(ours: Mapping[str, float]) -> Checks:
    """Compare many numbers at once: id -> our number, in the printed unit.

    Raises:
        KeyError: if no published number has one of the ids.
        OutOfToleranceError: as `check`.
    """
    return Checks(tuple(check(value, id) for id, value in ours.items()))


def verdict(key: str, *, claim: str, finding: Finding, because: str, ours: str = "") -> Verdict:
    """Say what the book found about one claim of an entry of the collection.

    The claim and the reason are whole sentences; `ours` is what the page computed, where a number says it.

    Raises:
        ValueError: if the finding is none of the three, or a sentence is missing.
    """
    allowed = ("confirmed", "corrected", "not checkable")
    if finding not in allowed:
        raise ValueError(f"finding {finding!r} is not one of {', '.join(allowed)}")
    for argument, text in (("claim", claim), ("because", because)):
        if not text.strip().endswith((".", "?", "。")):
            raise ValueError(
                f"{argument} {text!r} is not a whole sentence: it does not end in a full stop"
            )
    return Verdict(key, claim, finding, because, ours)


def shown(value: float) -> str:
    """A number for reading: whole numbers with separators, others with four significant digits.

    >>> shown(6738415616.0), shown(31.40625), shown(0.1171875), shown(3.1428766e23)
    ('6,738,415,616', '31.41', '0.1172', '3.143e23')
    """
    if abs(value) >= 1e15:
        return f"{value:.3e}".replace("e+", "e")
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def shown_as_printed(value: str) -> str:
    """The printed digits as a reader expects them: separators, and a letter for the power of ten.

    >>> shown_as_printed("6738415616"), shown_as_printed("31.4"), shown_as_printed("6.7e9")
    ('6,738,415,616', '31.4', '6.7 B')
    """
    if value.isdigit():
        return f"{int(value):,}"
    digits, _, power = value.partition("e")
    return f"{digits} {POWERS[power]}" if power in POWERS else value


POWERS = {"3": "k", "6": "M", "9": "B", "12": "T"}
