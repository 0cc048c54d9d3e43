"""A check that cannot fail is worse than none: each way of failing is tried."""

from decimal import Decimal

import pytest

from llmbook import published
from llmbook.bibliography import entries
from llmbook.published import (
    Check,
    Number,
    OutOfToleranceError,
    check,
    check_all,
    number,
    numbers,
    verdict,
)


def a_number(value, **fields):
    return Number("an.id", value, "GB", "key", "Table 1", "count", "a quantity", **fields)


@pytest.mark.parametrize(
    ("value", "ours", "agrees"),
    [
        ("31.4", 31.4499, True), ("31.4", 31.4501, False), ("31.40", 31.41, False), ("120", 120.5, True),
        ("6.7e9", 6_738_415_616, True), ("6.7e9", 6_760_000_000, False), ("0", 0.0, True), ("0", 1.0, False),
    ],
)  # fmt: skip
def test_the_tolerance_is_half_of_the_last_printed_digit(value, ours, agrees):
    assert Check(a_number(value), ours).agrees is agrees


def test_a_number_out_of_tolerance_raises_and_says_both(monkeypatch):
    monkeypatch.setattr(published, "numbers", lambda: {"an.id": a_number("31.4")})
    with pytest.raises(OutOfToleranceError, match=r"ours 30 ≠ printed 31.4 GB .* out of tolerance"):
        check(30, "an.id")


def test_agreement_with_a_misprint_raises(monkeypatch):
    monkeypatch.setattr(
        published, "numbers", lambda: {"an.id": a_number("31.4", misprint="Wrong.")}
    )
    assert not check(30, "an.id").agrees
    with pytest.raises(OutOfToleranceError, match="stands as a misprint"):
        check(31.4, "an.id")


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(KeyError, match=r"no published number .* nearest are zero\.figure1"):
        number("zero.figure.stage1")


def test_every_number_has_a_source_in_the_bibliography_and_a_value_that_is_one():
    for found in numbers().values():
        assert found.source in entries(), found
        assert Decimal(found.value).is_finite()
        assert found.kind in ("identity", "count", "prediction"), found
        assert found.where
        assert found.what
        assert found.allowed > 0


def test_a_verdict_needs_one_of_three_findings_and_whole_sentences():
    good = {"claim": "It is so.", "finding": "confirmed", "because": "We counted."}
    assert verdict("key", **good).row()["type"] == "verdict"
    with pytest.raises(ValueError, match="finding 'true' is not one of"):
        verdict("key", **(good | {"finding": "true"}))
    with pytest.raises(ValueError, match="because 'We counted' is not a whole sentence"):
        verdict("key", **(good | {"because": "We counted"}))


def test_rows_travel_as_plain_data():
    import json

    bundle = check_all({"zero.figure1.stage1": 31.40625})._repr_mimebundle_()
    assert json.loads(json.dumps(bundle[published.MIME]))["rows"][0]["agrees"] is True
