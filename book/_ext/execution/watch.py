"""See which files of a repository a Python process uses, and those of the processes it starts.

An audit hook notes what is opened, listed or handed to another program; modules are added at the
end. The notes go to a file that every process of the page appends to. Not seen: files that compiled
code opens itself, and what programs other than Python read unless their arguments name it.
This module stands alone: `startup/sitecustomize.py` loads it into other Python processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from typing import Any

ENVIRONMENT = "EXECUTION_WATCH"  # how a Python process that is not forked learns what to watch
ACCESS_MODE = 3  # the bits of open's flags that tell reading from writing
FILES = ("open", "sqlite3.connect", "ctypes.dlopen")
FOLDERS = ("os.listdir", "os.scandir")
PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system")
# Imports look into every folder on their way; that is no use of it.
LISTED_BY_IMPORTS = ("importlib._bootstrap_external", "importlib.metadata", "pkgutil")


@dataclass(frozen=True)
class Scope:
    """Which files count (those below `root`, not in `ignored` folders), and where to note them."""

    root: str
    ignored: tuple[str, ...]
    notes: str = ""

    def covers(self, path: str) -> bool:
        """Whether a path is a file of the repository."""
        inside = path == self.root or path.startswith(self.root + os.sep)
        return inside and "site-packages" not in path and not path.startswith(self.ignored)


def start(scope: Scope) -> None:
    """Note from now on what this process and its forks use."""
    compile_modules_from_source(scope)
    notes = os.open(scope.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    seen: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        for line in notes_of(event, arguments, scope):
            if line not in seen:
                seen.add(line)
                os.write(notes, os.fsencode(line))  # if this fails, the page must fail

    sys.addaudithook(hook)


def notes_of(event: str, arguments: tuple[Any, ...], scope: Scope) -> Iterator[str]:
    """What an audit event says about files of the repository, as lines of the notes."""
    names: list[Any] = []
    if event in FILES:
        writes = event == "open" and (arguments[2] or 0) & ACCESS_MODE == os.O_WRONLY
        names = [] if writes else [arguments[0]]
    elif event in FOLDERS:
        lister = sys._getframe(2).f_globals.get("__name__")  # above: the hook, then the caller
        names = [] if lister in LISTED_BY_IMPORTS else [arguments[0] or "."]
    elif event in PROGRAMS:
        command = arguments[0] if event == "os.system" else arguments[1]
        folder = arguments[2] if event == "subprocess.Popen" and arguments[2] else "."
        words = [os.path.join(os.fsdecode(folder), word) for word in words_of_command(command)]
        names = [word for word in words if os.path.isfile(word)]
    for name in names:
        if isinstance(name, (str, bytes, os.PathLike)):
            path = source_of(os.path.abspath(os.fsdecode(name)))
            kind = "folder" if event in FOLDERS else "file"
            if scope.covers(path) and "\n" not in path:
                yield f"{kind if os.path.exists(path) else 'missing'}\t{path}\n"


def source_of(path: str) -> str:
    """The source of a file of bytecode; any other path as it is."""
    try:
        return importlib.util.source_from_cache(path) if "__pycache__" in path else path
    except ValueError:
        return path


def words_of_command(command: Any) -> list[str]:
    """The words of a command line; a shell's script is split as well."""
    given = [command] if isinstance(command, (str, bytes)) else command or ()
    words = set(texts := [os.fsdecode(word) for word in given])
    for text in texts:
        try:
            words.update(shlex.split(text))
        except ValueError:
            words.update(text.split())
    return sorted(word for word in words if "\0" not in word)


def compile_modules_from_source(scope: Scope) -> None:
    """Ignore the stored bytecode of the repository's modules.

    It is trusted by modification second and size: a module edited twice within a second would run
    as it was before.
    """
    original = SourceFileLoader.path_stats

    def path_stats(loader: SourceFileLoader, path: str) -> Any:
        if scope.covers(os.path.abspath(path)):
            raise OSError("bytecode of the repository is not used")
        return original(loader, path)

    SourceFileLoader.path_stats = path_stats  # type: ignore[method-assign, assignment]


def finish(scope: Scope | None = None) -> None:
    """Add to the notes what is known at a page's end: its modules and where they were looked for.

    A kernel, which has no scope at hand, finds it in its environment.
    """
    scope = scope or scope_in(os.environ[ENVIRONMENT])
    notes = [("file", name) for name in files_of_modules() if scope.covers(name)]
    notes += [("path", os.path.abspath(folder)) for folder in sys.path]
    notes += [("version", "Python " + ".".join(map(str, sys.version_info[:3])))]
    if "torch" in sys.modules:
        notes += [("version", "torch " + str(sys.modules["torch"].__version__).split("+")[0])]
    notes += [("cpu", str(sum(os.times()[:4])))]
    with open(scope.notes, "ab") as file:
        file.writelines(os.fsencode(f"{kind}\t{text}\n") for kind, text in notes)


def files_of_modules() -> list[str]:
    """Files of the loaded modules; looked up so that lazy modules stay lazy."""
    found = [getattr(one, "__dict__", {}).get("__file__") for one in list(sys.modules.values())]
    return [name for name in found if isinstance(name, str)]


def environment(scope: Scope) -> dict[str, str]:
    """Variables by which other Python processes join in, through `startup/sitecustomize.py`."""
    startup = os.path.join(os.path.dirname(os.path.abspath(__file__)), "startup")
    path = os.pathsep.join(filter(None, [startup, os.environ.get("PYTHONPATH", "")]))
    return {ENVIRONMENT: json.dumps(asdict(scope)), "PYTHONPATH": path}


def scope_in(settings: str) -> Scope:
    """The scope that an environment variable holds."""
    values = json.loads(settings)
    return Scope(values["root"], tuple(values["ignored"]), values["notes"])
