"""Fixtures: the book of five pages, executed once, copied for each test."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the folder that holds the package `execution`

from execution.tests.fixture_book import FILES, Book, write_book


@pytest.fixture(scope="session")
def executed_once(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """The fixture book after a cold run (do not change it: tests take copies)."""
    book = write_book(tmp_path_factory.mktemp("once") / "repository", FILES)
    done = book.stage()
    assert done.returncode == 0, done.stdout + done.stderr
    return book


@pytest.fixture
def book(executed_once: Book, tmp_path: Path) -> Book:
    """A fresh copy of the executed book."""
    shutil.copytree(executed_once.root, tmp_path / "repository")
    return Book(tmp_path / "repository")


@pytest.fixture
def new_book(tmp_path: Path) -> Callable[[dict[str, str]], Book]:
    """Makes a book of given pages that was never executed."""
    return lambda files: write_book(tmp_path / "new", files)
