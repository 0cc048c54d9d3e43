"""`nox -s reproduce`: two cold builds, one page and four pages at a time, must give the same bytes.

Compared is every file of the HTML, apart from the stamp `executed-on`, the only place of a date.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAMP = re.compile(rb'(<div class="executed-on[^>]*>).*?(</div>)', re.S)


def unstamped(content: bytes) -> bytes:
    """A file without what its stamps say.

    >>> unstamped(b'<div class="executed-on docutils"><p>2026</p></div>')
    b'<div class="executed-on docutils"></div>'
    """
    return STAMP.sub(rb"\1\2", content)


def names_below(top: Path) -> set[str]:
    """The files of a folder by name, without Sphinx's notes to itself."""
    files = (file.relative_to(top) for file in top.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if file.parts[0] != ".doctrees"}


def differing(one: Path, two: Path) -> Iterator[str]:
    """One sentence for each file that is not the same in two folders, with its first line that differs."""
    sides = [names_below(top) for top in (one, two)]
    for name in sorted(sides[0] ^ sides[1]):
        yield f"{name}: only in the {'first' if name in sides[0] else 'second'} build"
    for name in sorted(sides[0] & sides[1]):
        texts = [unstamped((top / name).read_bytes()) for top in (one, two)]
        if texts[0] != texts[1]:
            yield f"{name}:{first_difference(*texts)}"


def first_difference(one: bytes, two: bytes, around: int = 60) -> str:
    r"""Where two texts part: the line, and both from a little before.

    >>> first_difference(b"a\nbcd", b"a\nbce")
    "2:\n  'bcd'\n  'bce'"
    """
    pairs = enumerate(zip(one, two, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))
    line = one.count(b"\n", 0, same) + 1
    start = max(one.rfind(b"\n", 0, same) + 1, same - around)
    shown = [
        text[start : same + around].split(b"\n")[0].decode("utf8", "replace") for text in (one, two)
    ]
    return f"{line}:\n  {shown[0]!r}\n  {shown[1]!r}"


def build(folder: Path, jobs: int, stage: list[str], pages: list[str]) -> Path:
    """A cold build below a folder; where the HTML lies. The command that fails says why."""
    cache, html = folder / "cache", folder / "html"
    execute = [
        "-m",
        "execution",
        "book",
        "--cache",
        str(cache),
        "--jobs",
        str(jobs),
        *stage,
        *pages,
    ]
    render = ["-m", "sphinx", "-b", "html", "-q", "-W", "-n", "--keep-going"]
    render += [
        "-D",
        f"nb_execution_cache_path={cache}",
        "-d",
        str(folder / "doctrees"),
        "book",
        str(html),
    ]
    if pages:
        render = ["book/_ext/one_page.py", str(cache), str(html), *pages]
    for command in (execute, render):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return html


def main(stage: list[str], pages: list[str]) -> int:
    """Build twice and compare; 1 if anything differs."""
    with tempfile.TemporaryDirectory(prefix="reproduce-") as place:
        # Both lie at the same depth under the same length of name: nothing but a leak can tell them apart.
        html = [build(Path(place, f"jobs{jobs}"), jobs, stage, pages) for jobs in (1, 4)]
        files = len(names_below(html[0]))
        found = list(differing(*html))
    print(
        "\n".join(found) or f"{files} files, the same bytes with one page and with four at a time"
    )
    return 1 if found else 0


if __name__ == "__main__":
    words = sys.argv[1:]
    split = words.index("--")
    sys.exit(main(words[:split], words[split + 1 :]))
