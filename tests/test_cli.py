"""The command as a new user meets it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llmbook.cli import app


def llmbook(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        # brown2020language prints 174,600 M; the rest are the totals of the organisations' own cards and classes
        ("llama-7b", 6_738_415_616), ("bloom", 176_247_271_424), ("gpt2", 124_439_808), ("gpt-3-175b", 174_604_259_328),
        ("opt-6.7b", 6_658_473_984),
    ],
)  # fmt: skip
def test_params_are_exact(name, total):
    result = llmbook("params", name, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["total"] == total


def test_params_print_a_table_that_names_the_page():
    result = llmbook("params", "llama-7b")
    assert "6,738,415,616" in result.stdout
    assert "foundations/parameters" in result.stdout


def test_an_unknown_model_is_one_sentence_and_exit_code_2():
    result = llmbook("params", "llama-7")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "llama-7b" in result.stderr


def test_cite_prints_every_format():
    for form, mark in {
        "bibtex": "@",
        "ris": "TY  -",
        "csl-json": '"id"',
        "text": "Rajbhandari",
    }.items():
        result = llmbook("cite", "rajbhandari2020zero", "--format", form)
        assert result.exit_code == 0
        assert mark in result.stdout


def test_an_unknown_key_names_the_nearest():
    result = llmbook("cite", "rajbhandari2019zero")
    assert result.exit_code == 2
    assert "rajbhandari2020zero" in result.stderr


def test_search_prints_keys_and_a_search_without_a_find_fails():
    assert "rajbhandari2020zero" in llmbook("search", "rajbhandari", "trillion").stdout
    assert llmbook("search", "no", "such", "words", "xyzzy").exit_code == 2


FREE_OF_TORCH = (
    "units",
    "config",
    "config.modules",
    "published",
    "bibliography",
    "costs.parameters",
    "zoo.catalogue",
    "cli",
)


@pytest.mark.parametrize("module", FREE_OF_TORCH)
def test_the_shell_s_modules_do_not_import_torch(module):
    """import-linter does not see what a package's `__init__` imports; a fresh interpreter does."""
    heavy = "{'torch', 'numpy', 'matplotlib', 'jaxtyping', 'transformers'}"
    code = (
        f"import sys, llmbook.{module}; found = {heavy} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_m_is_the_command():
    found = subprocess.run(
        [sys.executable, "-m", "llmbook", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("llmbook 0.")
