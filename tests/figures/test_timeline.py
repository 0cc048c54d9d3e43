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
    assert [(text.get_text(), text.xy) for text in ax.texts] == [
        ("a", (2020, 3)),
        ("", (2021, 30)),
        ("b", (2022, 300)),
    ]
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "size")


def test_a_name_does_not_cover_the_next_release():
    """Five months later and a little larger, as DeepSeek-V3 after Llama 3.1."""
    early, late = ("Llama 3.1 405B", date(2024, 7, 23), 406.0), ("", date(2024, 12, 26), 671.0)
    ax = releases({"one": [("", date(2018, 6, 1), 0.1), early, late]}, y_label="size")
    ax.figure.draw_without_rendering()
    name = next(
        text for text in ax.texts if text.get_text() == "Llama 3.1 405B"
    ).get_window_extent()
    dot = ax.transData.transform((year(late[1]), late[2]))
    assert name.x1 < dot[0] - 3  # pixels; a dot's radius is 2.5 points


def test_a_span_runs_from_its_first_day_to_its_second_with_its_names_at_the_ends():
    ax = spans([("idea", date(2017, 1, 1), date(2020, 1, 1), "model")])
    assert list(ax.lines[0].get_xdata()) == [2017, 2020]
    assert [(text.get_text(), text.xy) for text in ax.texts] == [
        ("idea", (2017, 0)),
        ("model", (2020, 0)),
    ]
    low, high = ax.get_xlim()
    assert low < 2017 < 2020 < high
    assert [line.get_marker() for line in ax.lines] == ["None", "o", "s"]  # as captions say
    assert [list(line.get_xdata()) for line in ax.lines[1:]] == [[2017], [2020]]


def test_the_first_span_stands_on_top():
    day, later = date(2017, 1, 1), date(2020, 1, 1)
    ax = spans([("first", day, later, ""), ("second", day, later, "")])
    heights = [ax.transData.transform(ax.texts[at].xy)[1] for at in (0, 2)]
    assert [ax.texts[at].get_text() for at in (0, 2)] == ["first", "second"]
    assert heights[0] > heights[1]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="the size 0 of 'a' is not positive"):
        releases({"one": [("a", date(2020, 1, 1), 0)]}, y_label="size")
    with pytest.raises(ValueError, match="'idea' ends on 2019-01-01, before it begins on 2020"):
        spans([("idea", date(2020, 1, 1), date(2019, 1, 1), "model")])
