"""`reproduce`, `digits`, `verify`, `newest`, `bench`, and what is read or written again, on small examples."""

import json
import os
from types import SimpleNamespace

import pytest


def notebook(*outputs):
    return {"cells": [{"cell_type": "code", "outputs": [*outputs]}]}


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def evaluated(name, value):
    prefix = "application/papermill.record/"
    return {
        "output_type": "display_data",
        "data": {f"{prefix}text/plain": value},
        "metadata": {"scrapbook": {"name": name, "mime_prefix": prefix}},
    }


def cached(folder, page, *outputs):
    """A cache as the execution stage leaves it, with one page."""
    record = folder / "pages" / f"{page}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"hashkey": page.replace("/", "-")}))
    place = folder / "executed" / page.replace("/", "-") / "base.ipynb"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(notebook(*outputs)))


def test_texts_labels_of_figures_and_values_in_prose_are_printed():
    from printed import texts

    drawn = {"data": {"image/svg+xml": "<svg><!-- 12.5 --><path d='M 1.234 5'/></svg>"}}
    outputs = [
        stream(["loss 2.5\n"]),
        {"output_type": "display_data", **drawn},
        evaluated("x", "3.1"),
    ]
    assert texts(notebook(*outputs)) == {"cell 1": "loss 2.5\n12.5", "{eval} x": "3.1"}


@pytest.mark.parametrize(
    ("one", "two", "numbers"),
    [
        ("a 1,234.5 b 7", "a 1,234.6 b 7", (("1,234.5", "1,234.6"),)),
        ("0.5 and -2e-07", "0.5 and -3e-07", (("-2e-07", "-3e-07"),)),
        ("fp32 [1, 2]", "fp32 [1, 3]", (("2", "3"),)),
        ("yes 1.0", "no 1.0", ()),
        ("nan", "0.3", ()),
    ],
)
def test_lines_differ_in_numbers_or_in_words(one, two, numbers):
    from printed import differences

    (found,) = differences({"cell 1": one}, {"cell 1": two})
    assert found.numbers == numbers


def test_a_line_more_is_a_difference_and_columns_that_shift_are_not():
    from printed import differences

    (found,) = differences({"cell 1": "a\nb"}, {"cell 1": "a"})
    assert not found.within
    (found,) = differences({"cell 1": "x =  9.99"}, {"cell 1": "x = 10.00"})
    assert found.within


def test_a_place_that_only_one_run_has_differs():
    from printed import differences

    assert len(list(differences({}, {"{eval} x": "1"}))) == 1


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [("2.4713 s", "equal"), ("2.4714 s", "within"), ("2.4700 s", "within"), ("2.40 s", "differs"),
     ("2.4713 m", "differs")],
)  # fmt: skip
def test_a_run_is_judged_against_the_book(theirs, verdict):
    from verify import judged

    ((found, _),) = judged("p", {"cell 1": "2.4713 s"}, {"cell 1": theirs})
    assert found == verdict


def test_stored_text_that_a_page_no_longer_prints_is_outdated(tmp_path):
    from printed import executed, texts
    from verify import outdated, store_texts, stored

    cache, store = tmp_path / "cache", tmp_path / "printed"
    cached(cache, "a/one", stream("loss 2.5\nsteps 10\n"))
    cached(cache, "two", stream("1\n"))
    assert outdated(cache, ["a/one"], store, exactly=False) == ["a/one"]  # never stored
    store_texts("a/one", texts(executed(cache, "a/one")), store)
    assert stored("a/one", store) == {"cell 1": "loss 2.5\nsteps 10"}
    assert outdated(cache, ["a/one", "two"], store, exactly=True) == ["two"]
    cached(cache, "a/one", stream("loss 2.6\nsteps 10\n"))
    assert outdated(cache, ["a/one"], store, exactly=True) == ["a/one"]
    assert outdated(cache, ["a/one"], store, exactly=False) == []  # its last digit
    cached(cache, "a/one", stream("loss 2.9\nsteps 10\n"))
    assert outdated(cache, ["a/one"], store, exactly=False) == ["a/one"]


def test_digits_that_move_and_pages_that_fail_are_named(tmp_path):
    from digits import moving

    for name, loss in (("one", "2.4713"), ("two", "2.4728")):
        cached(tmp_path / name, "training/zero", stream(f"loss {loss}\n"))
    (difference,) = moving(tmp_path / "one", tmp_path / "two", "avx2", {})["training/zero"]
    assert str(difference).splitlines()[0] == "cell 1: 2.4713 / 2.4728: 3 digits agree"
    failed = {"training/zero": "book/training/zero.md:9: cell 1, line 1: hangs"}
    (difference,) = moving(tmp_path / "one", tmp_path / "two", "avx2", failed)["training/zero"]
    assert "hangs" in str(difference)


def test_two_builds_differ_by_more_than_their_stamps(tmp_path):
    from reproduce import differing

    one, two = tmp_path / "one", tmp_path / "two"
    stamp = '<div class="executed-on docutils container">\n<p>Executed on {}</p>\n</div>'
    for folder, when, value in ((one, "2026-01-01", "1"), (two, "2026-01-02", "2")):
        folder.mkdir()
        (folder / "same.html").write_text(f"<p>1</p>\n{stamp.format(when)}")
        (folder / "other.html").write_text(f"<p>x</p>\n<p>{value}</p>\n{stamp.format(when)}")
    (one / "more.html").write_text("")
    assert list(differing(one, two)) == [
        "more.html: only in the first build",
        "other.html:2:\n  '<p>1</p>'\n  '<p>2</p>'",
    ]


@pytest.mark.parametrize(("ours", "holds"), [([1.1, 1.2, 9.0], True), ([1.4, 1.4, 1.0], False)])
def test_a_promise_is_judged_by_medians(ours, holds):
    from bench import Row, verdict

    row = Row("x", "ours", "peer", lambda rounds: ([], []), at_most=1.3)
    assert verdict(row, ours, [1.0, 1.0, 5.0])["holds"] is holds


def test_rounds_are_interleaved():
    from bench import interleaved

    order = []
    interleaved(2, lambda: order.append("ours"), lambda: order.append("peer"))
    assert order == ["ours", "peer", "ours", "peer"]


def test_every_row_of_the_benchmark_that_is_stored_is_one_that_can_be_measured():
    import bench
    import bench_rows  # noqa: F401

    stored = json.loads(bench.STORE.read_text(encoding="utf8"))
    assert stored.keys() <= bench.ROWS.keys()
    for name, found in stored.items():
        assert (found["ours"], found["peer"]) == (bench.ROWS[name].ours, bench.ROWS[name].peer)


def test_a_page_is_read_again_when_what_it_draws_of_others_changes(tmp_path, monkeypatch):
    import freshness

    monkeypatch.setitem(freshness.DRAWN, "names", lambda book: str(sorted(os.listdir(book))))
    monkeypatch.setitem(freshness.DRAWN, "text", lambda book, name: (book / name).read_text())
    (tmp_path / "a").write_text("1")
    env = SimpleNamespace(srcdir=tmp_path, docname="finder")
    freshness.note(env, "names", "['a']")
    env.docname = "other"
    freshness.note(env, "text a", "1")
    assert freshness.read_again(None, env, set(), set(), set()) == []
    (tmp_path / "a").write_text("2")
    assert freshness.read_again(None, env, set(), set(), set()) == ["other"]
    freshness.purge(None, env, "other")
    (tmp_path / "b").write_text("")
    assert freshness.read_again(None, env, set(), set(), set()) == ["finder"]


def test_filled_pages_and_pages_read_by_another_format_are_written_again(tmp_path):
    import freshness

    domain = SimpleNamespace(citation_refs=[])
    env = SimpleNamespace(
        srcdir=tmp_path / "book", found_docs={"ledger", "page"}, titles={}, llmbook_rows={},
        get_domain=lambda name: domain,
    )  # fmt: skip
    builder = SimpleNamespace(
        name="html", format="html", get_outfilename=lambda page: tmp_path / f"{page}.html"
    )
    app = SimpleNamespace(doctreedir=tmp_path, builder=builder, env=env)
    for page in env.found_docs:
        for kind, when in (("doctree", 10), ("html", 20)):
            (tmp_path / f"{page}.{kind}").write_text("")
            os.utime(tmp_path / f"{page}.{kind}", (when, when))
    assert freshness.write_again(app, env) == ["ledger"]  # never written
    freshness.remember(app, None)
    assert freshness.write_again(app, env) == []
    env.llmbook_rows = {"page": [{"id": "x", "ours": 1.0}]}
    assert freshness.write_again(app, env) == ["ledger"]
    freshness.remember(app, None)
    os.utime(tmp_path / "page.doctree", (30, 30))  # `nox -s pdf` has read the page anew
    assert freshness.write_again(app, env) == ["page"]


def test_an_entry_is_formatted_once_and_again_when_it_is_another(monkeypatch):
    import bibtex_once
    from citing import Style
    from pybtex.database import Entry, Person

    def entry(title):
        work = Entry("misc", {"title": title, "year": "2020"}, {"author": [Person("Doe, Jo")]})
        work.key = "doe2020x"
        return work

    monkeypatch.setattr(bibtex_once, "FORMATTED", {})
    first = entry("One")
    found = Style().format_entry("doe2020x", first)
    assert Style().format_entry("doe2020x", first) is found
    assert "Two" in str(Style().format_entry("doe2020x", entry("Two")).text)
