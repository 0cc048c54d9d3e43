"""Outputs of cells as nbformat knows them: made plain, clean of what differs between runs, checked.

Left out: how they come about (`child.py`, `kernels.py`).
"""

from __future__ import annotations

import json
import numbers
import re
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

GLUE_PREFIX = "application/papermill.record/"  # MyST-NB takes such outputs out of the visible ones
ERROR_TYPE = "application/vnd.execution.error+json"

SHELL_SETTINGS: dict[str, dict[str, Any]] = {
    # Its thread would make every later fork of a page unsafe; too late once a shell exists.
    "HistoryManager": {"enabled": False},
    "InteractiveShell": {"colors": "nocolor", "autocall": 0},
    "InlineBackend": {"figure_formats": {"svg", "pdf"}, "close_figures": True},
}

SVG_PROLOGUE = re.compile(r"\A.*?(?=<svg\b)", re.DOTALL)
SVG_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
SVG_EMPTY_PATH = re.compile(r"<path(?![^>]*\sd=)([^>]*)>")


def plain_bundle(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """A mime bundle that JSON can hold, its SVG cleaned."""
    plain: dict[str, Any] = json.loads(json.dumps(bundle, default=plain_value))
    if isinstance(plain.get("image/svg+xml"), str):
        plain["image/svg+xml"] = clean_svg(plain["image/svg+xml"])
    return plain


def plain_value(value: Any) -> Any:
    """What Jupyter's own messages make of values that JSON does not know."""
    if isinstance(value, bytes):
        return b2a_base64(value, newline=False).decode("ascii")
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return str(value)


def clean_svg(text: str) -> str:
    """An SVG without prologue, document type and metadata.

    The document type alone is an error in every EPUB.  matplotlib draws a space as a path without
    `d`, which is one as well; it gets an empty one, since a `<use>` refers to it.
    """
    text = SVG_METADATA.sub("", SVG_PROLOGUE.sub("", text, count=1))
    return SVG_EMPTY_PATH.sub(r'<path d="M0 0"\1>', text)


def glue_output(expression: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """The output by which an expression's value travels: invisible, found by the expression."""
    if value["status"] == "ok":
        data = plain_bundle(value["data"])
    else:
        data = {ERROR_TYPE: {"ename": value["ename"], "evalue": value["evalue"]}}
    return {
        "output_type": "display_data",
        "data": {GLUE_PREFIX + kind: content for kind, content in data.items()},
        "metadata": {"scrapbook": {"name": expression, "mime_prefix": GLUE_PREFIX}},
    }


def plain_output(output: Mapping[str, Any]) -> dict[str, Any]:
    """An output as plain as those of the forked child, whoever recorded it."""
    plain = {**output}
    for part in ("data", "metadata"):
        if part in plain:
            plain[part] = plain_bundle(plain[part])
    if "traceback" in plain:
        plain["traceback"] = "\n".join(plain["traceback"]).splitlines()
    return plain


def merged_streams(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs with neighbouring pieces of one stream joined."""
    merged: list[dict[str, Any]] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if (
            output["output_type"] == "stream" == last.get("output_type")
            and output["name"] == last["name"]
        ):
            merged[-1] = {**last, "text": last["text"] + output["text"]}
        else:
            merged.append(output)
    return merged


def missing_image(outputs: list[dict[str, Any]], *, expected: bool) -> bool:
    """Whether a figure did not become an image: none came, or one came as its text."""
    bundles = [output["data"] for output in outputs if "data" in output]
    images = [bundle for bundle in bundles if any(kind.startswith("image/") for kind in bundle)]
    as_text = [
        bundle
        for bundle in bundles
        if bundle not in images and str(bundle.get("text/plain", "")).startswith("<Figure size ")
    ]
    return bool(as_text) or (expected and not images)
