"""`nox -s newest`: the book with the newest versions that pyproject.toml permits, not the locked ones.

Says which packages moved against `constraints.txt`, executes every page and renders the HTML with them, and names
the pages that fail and what Sphinx warns of.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = re.compile(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;#]+)", re.M)


def normalized(name: str) -> str:
    """A package's name as indexes compare it.

    >>> normalized("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def moved(locked: dict[str, str], installed: dict[str, str]) -> list[str]:
    """One sentence for each package of another version than the locked one, or that is not locked.

    >>> moved({"a": "1", "b": "2"}, {"a": "1.1", "b": "2", "c": "3"})
    ['a: 1 -> 1.1', 'c: not locked -> 3']
    """
    return [
        f"{name}: {locked.get(name, 'not locked')} -> {version}"
        for name, version in sorted(installed.items())
        if locked.get(name) != version
    ]


def versions() -> tuple[dict[str, str], dict[str, str]]:
    """The locked versions, and the installed ones without their local part (`+cpu`)."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf8")
    locked = {normalized(name): version for name, version in LOCK.findall(text)}
    own = {"llmbook", "pip", "setuptools", "wheel"}
    installed = {normalized(one.name): one.version.split("+")[0] for one in distributions()}
    return locked, {name: version for name, version in installed.items() if name not in own}


def main(stage: list[str]) -> int:
    """Execute and render with this interpreter's packages; 1 if anything breaks."""
    print("\n".join(moved(*versions())) or "no version moved", flush=True)
    with tempfile.TemporaryDirectory(prefix="newest-") as place:
        cache, html = Path(place, "cache"), Path(place, "html")
        execute = ["-m", "execution", "book", "--cache", str(cache), *stage]
        done = subprocess.run([sys.executable, *execute], cwd=ROOT)
        summary = cache / "summary.json"
        failed = json.loads(summary.read_bytes())["failed"] if summary.exists() else ["the stage"]
        render = ["-m", "sphinx", "-b", "html", "-q", "-W", "-n", "--keep-going"]
        render += [
            "-D",
            f"nb_execution_cache_path={cache}",
            "-d",
            f"{place}/trees",
            "book",
            str(html),
        ]
        sphinx = subprocess.run(
            [sys.executable, *render], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
    broken = [line for line in sphinx.stderr.splitlines() if line.strip()]
    broken = broken if sphinx.returncode else []
    print("\n".join([*map(str, failed), *broken]) or "every page runs and renders with them")
    return 1 if done.returncode or sphinx.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
