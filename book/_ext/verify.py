"""`nox -s verify -- PAGE`: does a page print on this machine what the book prints?

`book/printed/PAGE.json` holds what each page printed where the book was made: texts of outputs, labels of figures,
values in prose. `nox -s printed` stores them after a build; `nox -s build` says which it found outdated, and
`nox -s site` fails on them, so that they cannot fall behind unseen.

A number is *within* if it differs by one in its last printed digit or by a thousandth; other text must be equal.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from digits import run_stage
from printed import Texts, differences, executed, texts

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "book" / "printed"


def stored(page: str, store: Path = STORE) -> Texts | None:
    """What the book prints on a page; None where nobody has stored it."""
    file = store / f"{page}.json"
    if not file.exists():
        return None
    lines: dict[str, list[str]] = json.loads(file.read_text(encoding="utf8"))
    return {place: "\n".join(text) for place, text in lines.items()}


def store_texts(page: str, printed: Texts, store: Path = STORE) -> None:
    """Store what a page prints, a line a line, so that a change can be read."""
    file = store / f"{page}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = {place: text.splitlines() for place, text in printed.items()}
    file.write_text(json.dumps(lines, ensure_ascii=False, indent=1) + "\n", encoding="utf8")


def executed_pages(cache: Path) -> list[str]:
    """The pages that a cache has."""
    records = (cache / "pages").rglob("*.json")
    return sorted(
        record.relative_to(cache / "pages").with_suffix("").as_posix() for record in records
    )


def judged(page: str, ours: Texts, theirs: Texts) -> Iterator[tuple[str, str]]:
    """A verdict for each place that prints: equal, within or differs, with the lines.

    >>> list(judged("p", {"cell 1": "x = 2.47"}, {"cell 1": "x = 2.48"}))[0][0]
    'within'
    """
    for place in theirs | ours:
        pair = ({place: side[place]} if place in side else {} for side in (ours, theirs))
        found = list(differences(*pair))
        verdict = (
            "differs" if not all(one.within for one in found) else "within" if found else "equal"
        )
        yield verdict, "\n".join(map(str, found)) or place


def outdated(cache: Path, pages: list[str], store: Path = STORE, *, exactly: bool) -> list[str]:
    """The pages whose stored text is missing or not what they print; within counts unless `exactly`."""
    allowed = {"equal"} if exactly else {"equal", "within"}
    found = []
    for page in pages:
        theirs = stored(page, store)
        ours = texts(executed(cache, page))
        if theirs is None or {verdict for verdict, _ in judged(page, ours, theirs)} - allowed:
            found.append(page)
    return found


def verify(page: str, stage: list[str]) -> bool:
    """Run a page here, compare it with the book, say so cell by cell; whether nothing differs."""
    theirs = stored(page)
    if theirs is None:
        raise SystemExit(f"book/printed/{page}.json does not exist: nothing is known of {page}")
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        failed = run_stage(Path(folder), stage, [page], {})
        if failed:
            raise SystemExit("\n".join(failed.values()))
        ours = texts(executed(Path(folder), page))
    verdicts = list(judged(page, ours, theirs))
    for verdict, line in verdicts:
        print(f"{verdict:8} {line}")
    count = {
        one: sum(verdict == one for verdict, _ in verdicts)
        for one in ("equal", "within", "differs")
    }
    print(f"{page}: " + ", ".join(f"{number} {verdict}" for verdict, number in count.items()))
    return not count["differs"]


def main(task: str, words: list[str]) -> int:
    """`verify OPTIONS -- PAGES`, `store CACHE [PAGES]`, or `outdated CACHE PAGES`."""
    if task == "verify":
        split = words.index("--")
        differing = [page for page in words[split + 1 :] if not verify(page, words[:split])]
        return 1 if differing else 0
    cache, pages = Path(words[0]), words[1:]
    if task == "store":
        for page in pages or executed_pages(cache):
            store_texts(page, texts(executed(cache, page)))
    elif found := outdated(cache, pages, exactly=True):
        print(f"not what book/printed says (`nox -s printed` stores it): {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
