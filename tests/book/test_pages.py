"""What every finished page holds, read from its source."""

import re
from pathlib import Path

import pytest
import yaml

BOOK = Path(__file__).parents[2] / "book"
CHAPTERS = ("foundations", "training", "inference", "zoo", "data")
PAGES = [
    file.relative_to(BOOK).with_suffix("").as_posix()
    for chapter in CHAPTERS
    for file in sorted((BOOK / chapter).glob("**/*.md"))
    if file.stem != "index"
]
CELL = re.compile(r"^```\{code-cell\}.*?\n(.*?)^```", re.M | re.S)


def text_of(page):
    return (BOOK / f"{page}.md").read_text(encoding="utf8")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_labelled_by_its_path_and_will_be_executed(page):
    text = text_of(page)
    head = yaml.safe_load(text.split("---")[1])
    assert head["file_format"] == "mystnb"
    assert head["kernelspec"]["name"] == "python3"
    assert f"({page.replace('/', '-')})=\n# " in text


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_its_techniques_for_the_finder(page):
    assert yaml.safe_load(text_of(page).split("---")[1])["techniques"]


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_has_a_caption_and_an_alternative_text(page):
    for cell in CELL.findall(text_of(page)):
        if "figure:" in cell:
            assert re.search(r"^\s+alt: \S.{30,}", cell, re.M), cell
            assert re.search(r"^\s+caption: \S.{30,}", cell, re.M), cell


@pytest.mark.parametrize("page", PAGES)
def test_cells_are_readable(page):
    for cell in CELL.findall(text_of(page)):
        code = re.sub(r"\A---\n.*?^---\n", "", cell, flags=re.M | re.S)
        assert len(code.splitlines()) <= 20, (
            f"{page}: a cell of {len(code.splitlines())} lines:\n{code}"
        )
        for line in code.splitlines():
            assert len(line) <= 110, f"{page}: {len(line)} columns: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_every_exercise_has_a_solution(page):
    text = text_of(page)
    exercises = re.findall(r"\{exercise-start\}.*?:label: (\S+)", text, re.S)
    solutions = re.findall(r"\{solution-start\} (\S+)", text)
    assert exercises == solutions
    assert len(exercises) >= 2


@pytest.mark.parametrize("page", PAGES)
def test_every_formula_of_the_page_is_evaluated_by_a_test(page):
    from formula import expressions

    tests = "\n".join(
        file.read_text(encoding="utf8") for file in (BOOK.parent / "tests").glob("**/test_*.py")
    )
    for label in expressions(BOOK / f"{page}.md"):
        assert label in tests, f"{page}: no test evaluates the formula {label}"
