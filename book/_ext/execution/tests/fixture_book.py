"""A book of five pages in a temporary folder, and the stage run on it as a builder would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat

PACKAGES = Path(__file__).parents[2]  # the folder that holds the package `execution`

FRONT = """---
file_format: mystnb
kernelspec: {{name: python3, language: python, display_name: Python 3}}
{more}---

# {title}

"""


def cell(source: str, options: str = "") -> str:
    """A code cell as it stands on a page."""
    return f"```{{code-cell}} ipython3\n{options}{source}\n```\n\n"


def page(title: str, *parts: str, more: str = "") -> str:
    """A page's text."""
    return FRONT.format(title=title, more=more) + "".join(parts)


SOURCES = 'import sys\nsys.path.insert(0, "../src")\n'

NUMBERS = page(
    "Numbers",
    "The total is {eval}`total`, or {eval}`f'{total:.2f}'`.\n\n",
    cell(
        SOURCES
        + """import alpha
total = alpha.VALUE + int(open('../data/numbers.txt').read())
print(total)"""
    ),
    cell("""try:
    open('../data/wanted.txt')
except FileNotFoundError:
    print('not there')"""),
    cell(
        "from IPython.display import SVG\nSVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')",
        "---\nmystnb:\n  figure:\n    caption: |\n      Twice is {eval}`total * 2`.\n---\n",
    ),
)

RANKS = page(
    "Ranks",
    cell(
        SOURCES
        + """import os
if os.fork() == 0:
    open('../data/forked.txt').read()
    import beta
    os._exit(0)
os.wait()[1]"""
    ),
    cell("""import subprocess
environment = {**os.environ, 'PYTHONPATH': '../src:' + os.environ['PYTHONPATH']}
program = 'import gamma; open("../data/python.txt").read()'
subprocess.run([sys.executable, '-c', program], env=environment, check=True).returncode"""),
    cell("subprocess.run('cat shell.txt', shell=True, cwd='../data', capture_output=True).stdout"),
    cell("""import alone, multiprocessing
server = multiprocessing.get_context('forkserver')
one = server.Process(target=alone.read, args=('../data/server.txt',))
one.start()
one.join()
one.exitcode"""),
)

LISTING = page(
    "Listing",
    cell("""from pathlib import Path
sorted(path.name for path in Path('../data/many').glob('*.txt'))"""),
)

TWIN = page("Twin", cell("from pathlib import Path\nprint(Path.cwd().name)"))

FILES = {
    "src/alpha.py": "from epsilon import VALUE\n",
    "src/epsilon.py": """from pathlib import Path
VALUE = int(Path(__file__).with_suffix('.txt').read_text())
""",
    "src/epsilon.txt": "40\n",
    "src/beta.py": "import zeta\n",
    "src/zeta.py": "VALUE = 1\n",
    "src/gamma.py": "VALUE = 1\n",
    "src/delta.py": "VALUE = 1\n",
    "src/alone.py": "def read(name):\n    return open(name).read()\n",
    "data/numbers.txt": "2\n",
    "data/forked.txt": "1\n",
    "data/python.txt": "1\n",
    "data/server.txt": "1\n",
    "data/shell.txt": "1\n",
    "data/unused.txt": "1\n",
    "data/many/a.txt": "",
    "data/many/b.txt": "",
    "locks.txt": "# locked\nnbformat==5.0\n",
    "book/index.md": """# Index

```{toctree}
numbers
ranks
listing
left/twin
right/twin
```
""",
    "book/numbers.md": NUMBERS,
    "book/ranks.md": RANKS,
    "book/listing.md": LISTING,
    "book/left/twin.md": TWIN,
    "book/right/twin.md": TWIN,
    "book/conf.py": (
        "project = 'fixture'\nversion = '1'\nextensions = ['myst_nb', 'execution.sphinx_hook']\n"
        "import pathlib\nnb_execution_mode = 'cache'\n"
        "nb_execution_cache_path = str(pathlib.Path(__file__).parents[1] / 'cache')\n"
    ),
}
PAGES = {"numbers", "ranks", "listing", "left/twin", "right/twin"}


@dataclass(frozen=True)
class Book:
    """A repository with a book, and what a builder does with it."""

    root: Path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def command(self, *arguments: str) -> list[str]:
        words = ["book", "--cache", "cache", "--locks", "locks.txt", "--jobs", "2", *arguments]
        return [sys.executable, "-m", "execution", *words]

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(PACKAGES), **more}

    def stage(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the stage; its output is text."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(**more),
            capture_output=True,
            text=True,
        )

    def start(self, *arguments: str, out: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Run the stage in the background, in a group of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def summary(self) -> Any:
        return json.loads((self.cache / "summary.json").read_text())

    def executed(self) -> set[str]:
        return {name for name, page in self.summary()["per_page"].items() if page["executed"]}

    def record(self, name: str) -> Any:
        return json.loads((self.cache / "pages" / f"{name}.json").read_text())

    def notebook_path(self, name: str) -> Path:
        hashkey: str = self.record(name)["hashkey"]
        return self.cache / "executed" / hashkey / "base.ipynb"

    def outputs(self, name: str) -> list[Any]:
        """Outputs of a page by cell."""
        return [cell.outputs for cell in nbformat.read(str(self.notebook_path(name)), 4).cells]  # type: ignore[no-untyped-call]

    def notebooks(self) -> dict[str, bytes]:
        """Every page's executed notebook, by page."""
        names = [
            path.relative_to(self.cache / "pages")
            for path in (self.cache / "pages").rglob("*.json")
        ]
        return {
            name.with_suffix("").as_posix(): self.notebook_path(
                name.with_suffix("").as_posix()
            ).read_bytes()
            for name in names
        }

    def stale(self) -> dict[str, list[str]]:
        """What would run now, and why (decided in this process: milliseconds)."""
        from execution.stage import Options, Stage

        options = Options(book=self.root / "book", cache=self.cache, locks=self.root / "locks.txt")
        with patch.dict(os.environ, OMP_NUM_THREADS="1"):
            stage = Stage(options)
            return stage.stale(stage.cache.records(), [])

    def sphinx(self, builder: str = "html") -> subprocess.CompletedProcess[str]:
        """Render with plain Sphinx, a warning being an error."""
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "-n",
            "-b",
            builder,
            "-d",
            "doctrees",
            "book",
            f"out/{builder}",
        ]
        return subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True
        )

    def html(self, name: str) -> str:
        return (self.root / "out" / "html" / f"{name}.html").read_text()


def write_book(root: Path, files: dict[str, str]) -> Book:
    """A repository with these files."""
    book = Book(root)
    (root / ".git").mkdir(parents=True)
    for name, text in files.items():
        book.write(name, text)
    return book
