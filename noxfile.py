"""The book's commands. `nox -s build` writes the HTML, `nox -s tests` runs the tests; `nox -l` lists the rest.

Two environments serve all sessions: `book` (what builds) and `tests_env` (what tests and lints). Every other
session runs a program of one of the two and installs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
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
EXTENSIONS = {"PYTHONPATH": str(ROOT / "book" / "_ext")}
PRELOADED = ",".join(  # what pages share: imported once, no operator run
    (
        "torch",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
        "jaxtyping",
        "matplotlib.pyplot",
    )
)
SHARED = ("--locks", str(LOCKS), "--preload", PRELOADED)  # of every run of the execution stage
TEX_PACKAGES = """nox -s pdf needs XeLaTeX, latexmk and fonts.
Debian, Ubuntu: apt install texlive-xetex texlive-latex-recommended texlive-latex-extra \
texlive-fonts-recommended texlive-lang-chinese latexmk fonts-freefont-otf lmodern tex-gyre fonts-texgyre \
fonts-noto-cjk fonts-dejavu-core fonts-symbola
Fedora: dnf install texlive-scheme-medium texlive-xecjk texlive-tcolorbox latexmk texlive-tex-gyre \
google-noto-sans-cjk-fonts google-noto-serif-cjk-fonts dejavu-sans-mono-fonts gdouros-symbola-fonts
macOS: brew install --cask mactex-no-gui font-noto-sans-cjk-sc font-noto-serif-cjk-sc font-dejavu font-symbola"""

nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["build"]


def install(session: nox.Session, extras: str) -> None:
    """Install the project editable with its extras, at the locked versions, where they are not installed yet."""
    state = LOCKS.read_bytes() + PROJECT.read_bytes() + extras.encode()
    wanted = hashlib.sha256(state).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
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


def run(session: nox.Session, environment: str, *command: str | Path, **options: object) -> None:
    """Run `python ...` of one of the two environments."""
    folder = "Scripts" if sys.platform == "win32" else "bin"
    python = ROOT / ".nox" / environment / folder / "python"
    session.run(str(python), *map(str, command), external=True, **options)  # type: ignore[arg-type]


def named_pages(session: nox.Session) -> list[str]:
    """The pages among the arguments, as paths without `book/` and `.md`; an unknown one stops the session."""
    pages = [
        word.removeprefix("book/").removesuffix(".md")
        for word in session.posargs
        if word[:1] != "-"
    ]
    for page in pages:
        if not (ROOT / "book" / f"{page}.md").exists():
            session.error(f"there is no page {page!r}: book/{page}.md does not exist")
    return pages


def execute(session: nox.Session) -> list[str]:
    """Run the cells of the named pages (all where none is named), keep their outputs in the cache."""
    pages = named_pages(session)
    options = [word for word in session.posargs if word[:1] == "-"]
    stage = ["-m", "execution", "book", "--cache", CACHE, "--jobs", str(os.cpu_count() or 2)]
    run(session, "book", *stage, *SHARED, *options, *pages, env=EXTENSIONS)
    return pages


def fingerprint(*folders: Path) -> str:
    """Hash of the names and contents of all files in some folders, Python's bytecode left out."""
    found = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.glob("**/*") if folder.is_dir() else [folder]):
            if file.is_file() and "__pycache__" not in file.parts:
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                found.update(f"{file.relative_to(ROOT)}\0{content}\0".encode())
    return found.hexdigest()


def written(folder: Path) -> str:
    """Hash of the names, sizes and times of what was written into a folder."""
    files = [file for file in sorted(folder.glob("**/*")) if file.is_file()]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def forget_if_changed() -> None:
    """Drop what Sphinx remembers of the pages if an extension changed: it does not look at their source."""
    code = [
        ROOT / "book" / "_ext",
        ROOT / "src/llmbook/published",
        ROOT / "src/llmbook/bibliography",
    ]
    state, stamp = fingerprint(*code), DOCTREES / "extensions.sha256"
    if not stamp.exists() or stamp.read_text() != state:
        shutil.rmtree(DOCTREES, ignore_errors=True)
        DOCTREES.mkdir(parents=True)
        stamp.write_text(state)


def render(session: nox.Session, builder: str, *options: str) -> None:
    """Write the book in one format from the outputs in the cache: no cell runs, a warning is an error.

    Where nothing that Sphinx reads has changed since it last succeeded, and what it wrote lies as it left it, Sphinx
    does not start. Where it failed, the next run reads every page anew: a page that was read is not warned of again.
    """
    read = [ROOT / "book", ROOT / "src", ROOT / "bibliography", CACHE / "pages", LOCKS, PROJECT]
    state, stamp = fingerprint(*read), DOCTREES / f"{builder}.sha256"
    if stamp.exists() and stamp.read_text() == state + written(BUILD / builder):
        return
    forget_if_changed()
    strict = ("-W", "-n", "--keep-going", "-q")
    command = [
        "-m",
        "sphinx",
        "-b",
        builder,
        *strict,
        "-d",
        DOCTREES,
        *options,
        "book",
        BUILD / builder,
    ]
    try:
        run(session, "book", *command, env=EXTENSIONS)
    except BaseException:
        (DOCTREES / "extensions.sha256").unlink(missing_ok=True)
        raise
    stamp.write_text(state + written(BUILD / builder))


def say_what_moved(session: nox.Session) -> None:
    """One line on executed pages that no longer print what book/printed says."""
    pages = json.loads((CACHE / "summary.json").read_text(encoding="utf8"))["per_page"]
    executed = [name for name, page in pages.items() if page["executed"]]
    if executed:
        run(session, "book", "book/_ext/verify.py", "outdated", CACHE, *executed, env=EXTENSIONS)


def report(started: float, product: Path) -> None:
    """One closing line: pages, cells, seconds and the file to open."""
    done = json.loads((CACHE / "summary.json").read_text(encoding="utf8"))
    seconds = time.monotonic() - started
    print(
        f"{done['executed'] + done['reused']} pages ({done['executed']} executed), {done['cells']} cells, "
        f"{seconds:.0f} s. Open {product.relative_to(ROOT)}"
    )


@nox.session(venv_backend="none", requires=["book"])
def build(session: nox.Session) -> None:
    """Execute every cell and write the HTML. `-- training/zero` builds one page; `--fresh`, `--why PAGE`."""
    started = time.monotonic()
    pages = execute(session)
    if any(word.startswith("--why") for word in session.posargs):
        return
    if pages:
        run(session, "book", "book/_ext/one_page.py", CACHE, BUILD / "page", *pages, env=EXTENSIONS)
        report(started, BUILD / "page" / f"{pages[0]}.html")
    else:
        render(session, "html")
        say_what_moved(session)
        report(started, BUILD / "html" / "index.html")


@nox.session(venv_backend="none", requires=["book"], default=False)
def pdf(session: nox.Session) -> None:
    """Write build/pdf/llmbook.pdf through XeLaTeX; the log stays beside it."""
    if not (shutil.which("xelatex") and shutil.which("latexmk")):
        session.error(TEX_PACKAGES)
    started = time.monotonic()
    execute(session)
    render(session, "latex")
    latexmk = (
        "latexmk",
        "-xelatex",
        "-interaction=nonstopmode",
        "-halt-on-error",
        "-silent",
        "llmbook.tex",
    )
    with session.chdir(BUILD / "latex"):
        session.run(*latexmk, external=True, silent=True)
    target = BUILD / "pdf"
    target.mkdir(exist_ok=True)
    for name in ("llmbook.pdf", "llmbook.log"):
        shutil.copy(BUILD / "latex" / name, target / name)
    run(session, "book", "book/_ext/tex_log.py", target / "llmbook.log")
    report(started, target / "llmbook.pdf")


@nox.session(venv_backend="none", requires=["book"], default=False)
def epub(session: nox.Session) -> None:
    """Write build/epub/llmbook.epub."""
    started = time.monotonic()
    execute(session)
    shutil.rmtree(BUILD / "epub", ignore_errors=True)  # it packs whatever lies there
    render(session, "epub")
    report(started, BUILD / "epub" / "llmbook.epub")


@nox.session(venv_backend="none", requires=["book"], default=False)
def serve(session: nox.Session) -> None:
    """Build, serve at 127.0.0.1:8000 and build again when a page, a module or a .bib file changes."""
    execute(session)
    stage = f"{sys.executable} -m nox -s build"
    watched = [part for name in ("src", "bibliography") for part in ("--watch", str(ROOT / name))]
    command = [
        "-m",
        "sphinx_autobuild",
        "-d",
        DOCTREES,
        "--pre-build",
        stage,
        *watched,
        "book",
        BUILD / "html",
    ]
    run(session, "book", *command, env=EXTENSIONS)


@nox.session(venv_backend="none", requires=["book"], default=False)
def linkcheck(session: nox.Session) -> None:
    """Ask every outside address whether it still answers (needs the network)."""
    execute(session)
    command = ["-m", "sphinx", "-b", "linkcheck", "-d", DOCTREES, "book", BUILD / "linkcheck"]
    run(session, "book", *command, env=EXTENSIONS)


@nox.session(venv_backend="none", default=False)
def ledger(session: nox.Session) -> None:
    """Say which values moved: `nox -s ledger -- OLD.json` compares with build/ledger.json."""
    if len(session.posargs) != 1 or not Path(session.posargs[0]).exists():
        session.error(
            "nox -s ledger -- OLD.json compares an earlier ledger.json with build/ledger.json"
        )
    session.run(
        sys.executable, "book/_ext/moved.py", session.posargs[0], "build/ledger.json", external=True
    )


@nox.session(venv_backend="none", default=False)
def numbers(session: nox.Session) -> None:
    """Report numbers in prose that are neither computed nor cited."""
    session.run(sys.executable, "book/_ext/retyped.py", "book", external=True)


@nox.session(venv_backend="none", requires=["book"], default=False)
def reproduce(session: nox.Session) -> None:
    """Build twice from nothing, one page and four at a time, and compare the HTML; `-- PAGE` for some pages."""
    pages = named_pages(session)
    run(session, "book", "book/_ext/reproduce.py", *SHARED, "--", *pages, env=EXTENSIONS)


@nox.session(venv_backend="none", requires=["book"], default=False)
def printed(session: nox.Session) -> None:
    """Store in book/printed what the pages of the last build print; `-- PAGE` for some pages."""
    run(session, "book", "book/_ext/verify.py", "store", CACHE, *named_pages(session))


@nox.session(venv_backend="none", requires=["book"], default=False)
def verify(session: nox.Session) -> None:
    """Run `-- PAGE` on this machine and compare with what the book prints: equal, within or differs."""
    pages = named_pages(session)
    if not pages:
        session.error("nox -s verify -- PAGE needs the name of a page, as in training/zero")
    run(session, "book", "book/_ext/verify.py", "verify", *SHARED, "--", *pages, env=EXTENSIONS)


@nox.session(reuse_venv=False, default=False)
def newest(session: nox.Session) -> None:
    """Build with the newest permitted versions instead of the locked ones; say what moved and what breaks."""
    session.install("--editable", ".[book]")
    jobs = ("--jobs", str(os.cpu_count() or 2), "--preload", PRELOADED)
    session.run("python", "book/_ext/newest.py", *jobs, env=EXTENSIONS)


@nox.session(venv_backend="none", requires=["book"], default=False)
def bench(session: nox.Session) -> None:
    """Measure ours against peers, store it for the performance page; `--quick`: one round; a row's name: it alone."""
    environment = {**EXTENSIONS, "BENCH_STAGE": " ".join(SHARED), "BENCH_NOX": sys.executable}
    run(session, "book", "book/_ext/bench.py", *session.posargs, env=environment)


@nox.session(venv_backend="none", requires=["book"], default=False)
def digits(session: nox.Session) -> None:
    """Name printed digits that change with the instruction set or two threads; `-- PAGE` for some pages."""
    jobs = ("--jobs", str(os.cpu_count() or 2))
    pages = named_pages(session)
    run(session, "book", "book/_ext/digits.py", *jobs, *SHARED, "--", *pages, env=EXTENSIONS)


@nox.session(venv_backend="none", requires=["tests_env"])
def tests(session: nox.Session) -> None:
    """Run the tests, doctests included, on all cores; then the execution stage's own suite."""
    pytest = ["-m", "pytest", "-n", str(min(4, os.cpu_count() or 2))]
    environment = {"OMP_NUM_THREADS": "1", **EXTENSIONS}
    run(session, "tests_env", *pytest, *session.posargs, env=environment)
    if not session.posargs:  # the stage knows nothing of this book
        run(session, "tests_env", *pytest, "book/_ext/execution/tests", env=environment)


@nox.session(venv_backend="none", requires=["book"], default=False)
def train_models(session: nox.Session) -> None:
    """Train the book's own models again, one core and about an hour; `-- small` or `-- draft` alone."""
    run(session, "book", "-m", "llmbook.foundations.weights", *session.posargs)


@nox.session(venv_backend="none", requires=["tests_env"], default=False)
def site(session: nox.Session) -> None:
    """Check the built HTML: links, alt texts, outside requests, anchors (after `nox -s build`)."""
    run(session, "tests_env", "-m", "pytest", "tests/book/test_site.py", "--built", BUILD / "html")


@nox.session(venv_backend="none", requires=["tests_env"], default=False)
def lint(session: nox.Session) -> None:
    """Style, the law of the house, docstrings, spelling, and the code of the pages."""
    run(session, "tests_env", "-m", "ruff", "check", ".")
    run(session, "tests_env", "-m", "ruff", "format", "--check", ".")
    run(session, "tests_env", "-c", "from importlinter.cli import lint_imports_command as c; c()")
    run(session, "tests_env", "-m", "interrogate", "-q", "src", "book/_ext")
    run(
        session,
        "tests_env",
        "-m",
        "codespell_lib",
        "src",
        "tests",
        "book",
        "noxfile.py",
        "README.md",
        "CONTRIBUTING.md",
    )
    cells = BUILD / "lint"
    shutil.rmtree(cells, ignore_errors=True)
    run(session, "tests_env", "book/_ext/page_code.py", "book", cells)
    rules = "E4,E7,E9,F,W,B,UP,I"
    # A page's last expression is its output, and imports stand where the reader needs them.
    left_out = "B018,B905,E402,E741,I001,W391,W293,E703"
    ruff = [
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        rules,
        "--ignore",
        left_out,
        "--target-version",
        "py311",
    ]
    run(session, "tests_env", *ruff, cells)


@nox.session(venv_backend="none", requires=["tests_env"], default=False)
def typecheck(session: nox.Session) -> None:
    """Type-check the library strictly."""
    run(session, "tests_env", "-m", "mypy")
