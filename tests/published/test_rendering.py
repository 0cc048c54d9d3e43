"""What a row says in the book."""

from types import SimpleNamespace

from llmbook.published import check, check_all, verdict
from llmbook.published.rendering import RowRenderer, classes, markdown


def test_a_check_shows_both_numbers_their_place_and_its_kind():
    text = markdown(check(31.40625, "zero.figure1.stage1").row())
    for part in ("31.41", "31.4 GB", "Figure 1", "{cite:t}`rajbhandari2020zero`", "identity"):
        assert part in text


def test_many_checks_are_one_table_with_the_common_unit_in_its_head():
    text = markdown(
        check_all({"zero.figure1.stage1": 31.40625, "zero.figure1.stage2": 16.5625}).row()
    )
    assert text.splitlines()[0] == "| quantity | ours, GB | printed | where | kind |"
    assert len(text.splitlines()) == 4


def test_the_class_says_what_was_found():
    row = verdict("key", claim="A.", finding="not checkable", because="B.").row()
    assert classes(row) == ["llmbook-row", "llmbook-verdict", "found-not-checkable"]


def test_other_outputs_are_left_to_others():
    assert RowRenderer.handle_mime(None, SimpleNamespace(mime_type="text/html"), False) is None
