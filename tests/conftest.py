"""Tensor code is called with its types and shapes checked; the book's extensions can be imported."""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

TENSOR_CODE = [
    "llmbook.foundations",
    "llmbook.data",
    "llmbook.training",
    "llmbook.inference",
    "llmbook.zoo",
]

install_import_hook(TENSOR_CODE, "beartype.beartype")
sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))


def pytest_addoption(parser):
    """`--built FOLDER`: the HTML that tests/book/test_site.py reads."""
    parser.addoption(
        "--built", default=None, help="folder of the built HTML: runs the site's checks on it"
    )


def pytest_collection_modifyitems(config, items):
    """The site's checks run where a site is named (`nox -s site`), and are reported as deselected elsewhere."""
    if config.getoption("--built") is None:
        apart = [item for item in items if item.path.name == "test_site.py"]
        if apart:
            config.hook.pytest_deselected(items=apart)
            items[:] = [item for item in items if item.path.name != "test_site.py"]
