"""The book's commands. `nox -s build` writes the HTML, `nox -s tests` runs the tests; `nox -l` lists the rest.

Two environments serve all sessions: `book` (what builds) and `tests_env` (what tests and lints). Every other
session runs a program of one of the two and installs nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import nox

ROOT = Path(__file__).parent
BUILD = ROOT / "build"
CACHE = BUILD / "cache"
DOCTREES = BUILD / "doctrees"
LOCKS = ROOT / "constraints.txt"
PROJECT = ROOT / "pyproject.toml"
SPHINX = ("-W", "-n", "--keep-going", "-q", "-d", str(DOCTREES))  # a warning is an error; nothing dangles
TEX_PACKAGES = (
    "nox -s pdf needs XeLaTeX and latexmk. Debian and Ubuntu: apt install texlive-xetex texlive-latex-recommended "
    "texlive-latex-extra texlive-fonts-recommended texlive-lang-chinese latexmk fonts-freefont-otf lmodern "
    "tex-gyre fonts-texgyre fonts-noto-cjk. Fedora: dnf install texlive-scheme-medium texlive-collection-xetex "
    "texlive-xecjk latexmk texlive-tex-gyre google-noto-sans-cjk-fonts google-noto-serif-cjk-fonts. macOS: "
    "brew install --cask mactex-no-gui font-noto-sans-cjk font-noto-serif-cjk."
)

nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["build"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, extras: str) -> None:
    """Install the project editable with its extras, at the locked versions, where they are not installed yet."""
    wanted = hashlib.sha256(LOCKS.read_bytes() + PROJECT.read_bytes() + extras.encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    session.install("--constraint", str(LOCKS), "--editable", f".[{extras}]")
    stamp.write_text(wanted)


@nox.session(reuse_venv=True, default=False)
def book(session: nox.Session) -> None:
    """Install the environment that builds the book (other sessions call this one)."""
    install(session, "book")


@nox.session(reuse_venv=True, default=False)
def tests_env(session: nox.Session) -> None:
    """Install the environment that tests and lints (other sessions call this one)."""
    install(session, "test,lint")


def program(environment: str, name: str) -> str:
    """The path of a program of one of the two environments."""
    folder = "Scripts" if sys.platform == "win32" else "bin"
    return str(ROOT / ".nox" / environment / folder / name)


def run(session: nox.Session, environment: str, *command: str, **options: object) -> None:
    """Run `python ...` of an environment."""
    session.run(program(environment, "python"), *command, external=True, **options)  # type: ignore[arg-type]


def execute(session: nox.Session, *pages: str) -> None:
    """Run the cells of the pages (all where none is named) and keep their outputs in the cache."""
    arguments = ["-m", "execution", "book", "--cache", str(CACHE), "--locks", str(LOCKS), "--fresh", *pages]
    run(session, "book", *arguments, env={"PYTHONPATH": str(ROOT / "book" / "_ext")})


def render(session: nox.Session, builder: str, *options: str) -> None:
    """Write the book in one format from the outputs in the cache; no cell runs."""
    run(session, "book", "-m", "sphinx", "-b", builder, *SPHINX, *options, "book", str(BUILD / builder))


def report(started: float, product: Path) -> None:
    """One closing line: pages, cells, seconds and the file to open."""
    summary = json.loads((CACHE / "summary.json").read_text())
    print(
        f"{summary['pages']} pages, {summary['cells']} cells executed, "
        f"{time.monotonic() - started:.0f} seconds: {product.relative_to(ROOT)}"
    )


@nox.session(venv_backend="none", requires=["book"])
def build(session: nox.Session) -> None:
    """Execute every cell and write the HTML. `nox -s build -- training/zero` executes and writes one page."""
    started = time.monotonic()
    pages = [page.removeprefix("book/").removesuffix(".md") for page in session.posargs]
    for page in pages:
        if not (ROOT / "book" / f"{page}.md").exists():
            session.error(f"there is no page {page!r}: book/{page}.md does not exist")
    execute(session, *pages)
    render(session, "html", *(["-D", f"llmbook_only={','.join(pages)}"] if pages else []))
    report(started, BUILD / "html" / (f"{pages[0]}.html" if pages else "index.html"))
