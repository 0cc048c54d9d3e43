"""Days stand where they belong, sizes on their axis, and what cannot be drawn is refused."""

from datetime import date

import matplotlib.pyplot as plt
import pytest

from llmbook.figures.timeline import releases, spans, year


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_a_year_runs_from_its_first_day_to_the_next_one_s():
    assert year(date(2021, 1, 1)) == 2021
    assert year(date(2021, 7, 2)) == pytest.approx(2021 + 182 / 365)
    assert year(date(2024, 12, 31)) == pytest.approx(2024 + 365 / 366)  # a leap year


def test_each_release_is_a_dot_at_its_day_and_size_in_the_marker_of_its_group():
    ax = releases(
        {"one": [("a", date(2020, 1, 1), 3.0), ("", date(2021, 1, 1), 30.0)],
         "two": [("b", date(2022, 1, 1), 300.0)]},
        y_label="size",
    )  # fmt: skip
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        [[2020, 3], [2021, 30]],
        [[2022, 300]],
    ]
    assert len({line.get_marker() for line in ax.lines}) == 2
    assert [text.get_text() for text in ax.texts] == ["a", "", "b"]
    assert ax.get_yscale() == "log"


def test_a_span_runs_from_its_first_day_to_its_second_with_its_names_at_the_ends():
    ax = spans([("idea", date(2017, 1, 1), date(2020, 1, 1), "model")])
    assert list(ax.lines[0].get_xdata()) == [2017, 2020]
    assert [(text.get_text(), text.xy) for text in ax.texts] == [
        ("idea", (2017, 0)),
        ("model", (2020, 0)),
    ]
    low, high = ax.get_xlim()
    assert low < 2017 < 2020 < high


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="the size 0 of 'a' is not positive"):
        releases({"one": [("a", date(2020, 1, 1), 0)]}, y_label="size")
    with pytest.raises(ValueError, match="'idea' ends on 2019-01-01, before it begins on 2020"):
        spans([("idea", date(2020, 1, 1), date(2019, 1, 1), "model")])
