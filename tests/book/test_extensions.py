"""What the build adds to Sphinx, tried alone."""

from pathlib import Path

import pytest

EXTENSIONS = Path(__file__).parents[2] / "book" / "_ext"


def test_a_formula_is_typeset_in_the_order_in_which_it_was_written():
    from formula import typeset

    assert typeset("M = 4*P + 12*P/R") == r"M = 4 P + \frac{12 P}{R}"


def test_letters_that_sympy_knows_otherwise_are_letters_here():
    from formula import typeset

    assert typeset("E = N*S + Q") == "E = N S + Q"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("The weights take 16.06 GB.", ["16.06 GB"]),
        ("The weights take {eval}`x` GB.", []),
        ("It has 1,234 layers.", ["1,234"]),
        ("It has 12 layers, in 2023, by equation $12 L D^2$ and `x = 12345`.", []),
        ("It takes 16.06 GB {cite:p}`key`.", []),
        ("A share of 46 % is a table.", ["46 %"]),
    ],
)
def test_a_retyped_number_is_found(line, found):
    from retyped import retyped

    assert [value for _, value in retyped(line)] == found


def test_numbers_in_cells_are_not_prose():
    from retyped import retyped

    assert retyped("```{code-cell} ipython3\nx = 12345\n```\n") == []


def test_faults_of_a_tex_log_are_found():
    from tex_log import faults

    log = "Missing character: There is no 测 in font\nLaTeX Warning: Reference `x' on page 1 undefined on input line 3."
    assert len(faults(log)) == 2


def test_page_code_keeps_the_page_s_line_numbers():
    from page_code import cells_only

    page = "# T\n```{code-cell} ipython3\n---\nmystnb:\n---\nx = 1\n```\ntext\n"
    assert cells_only(page).split("\n")[5] == "x = 1"
    assert len(cells_only(page).split("\n")) == len(page.split("\n"))


def test_an_unknown_macro_is_a_warning():
    from docutils import nodes
    from math_core import LatexError
    from mathml import CONVERTER, mathml

    with pytest.raises(LatexError):
        CONVERTER.convert_with_local_state(r"\nosuchmacro", displaystyle=False)
    assert "<code>" in mathml(r"\nosuchmacro", display=False, location=nodes.math())


def test_rows_of_a_page_are_forgotten_and_merged():
    from types import SimpleNamespace

    from ledger import merge, purge, rows_of

    mine, theirs = SimpleNamespace(), SimpleNamespace(llmbook_rows={"b": [{"type": "check"}]})
    merge(None, mine, ["b"], theirs)
    assert rows_of(mine, "check") == [{"type": "check", "page": "b"}]
    purge(None, mine, "b")
    assert rows_of(mine, "check") == []


@pytest.mark.parametrize("file", sorted(EXTENSIONS.glob("*.py")), ids=lambda file: file.stem)
def test_examples_in_docstrings_hold(file):
    import doctest
    import importlib

    assert doctest.testmod(importlib.import_module(file.stem)).failed == 0
