"""What a forked child does: run a page's cells in an IPython shell and note the outputs.

Standard output and error are caught at the level of file descriptors, so that what C code, a
subprocess or a forked rank writes is seen too. Linux only.
"""

from __future__ import annotations

import copy
import ctypes
import faulthandler
import fcntl
import io
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import activate_matplotlib
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets import Type
from traitlets.config import Config

from execution import cells, processes, watch
from execution.pages import Cell, Page, PageError

CELL_FILE = re.compile(r"<ipython-input-\d+-")
STACK_SIGNAL = signal.SIGUSR2  # asks a child that hangs where it is


def memory_file(name: str) -> int:
    """Descriptor of a file in memory; writers never block and never overwrite one another."""
    descriptor = os.memfd_create(name)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


class CellStderr(io.TextIOWrapper):
    """A text file on descriptor 2 that remembers which line of the cell wrote first."""

    line: int | None = None

    def write(self, text: str) -> int:
        """Write, and look up the stack for the cell."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and self.line is None and text:
            if CELL_FILE.match(frame.f_code.co_filename):
                self.line = frame.f_lineno
            frame = frame.f_back
        return super().write(text)


class Recorder:
    """Descriptors 1 and 2, and the outputs of a page in the order in which they come.

    nbclient makes outputs of messages as it does of a kernel's.
    """

    def __init__(self, page: Page, stderr: int) -> None:
        self.client = NotebookClient(copy.deepcopy(page.notebook))
        self.files = {1: memory_file("stdout"), 2: stderr}
        self.read = {1: 0, 2: 0}
        for descriptor, file in self.files.items():
            os.dup2(file, descriptor)
        self.stderr = CellStderr(io.FileIO(2, "w", closefd=False), "utf-8", line_buffering=True)
        self.former = (sys.stdout, sys.stderr)  # modules loaded before the fork may hold these
        out = io.FileIO(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(out, encoding="utf-8", line_buffering=True)
        sys.stderr = self.stderr
        self.position = 0

    def new_text(self, descriptor: int) -> str:
        """What was written since the last call, by whomever."""
        for stream in (sys.stdout, sys.stderr, *self.former):
            stream.flush()
        ctypes.CDLL(None).fflush(None)
        size = os.fstat(self.files[descriptor]).st_size
        start, self.read[descriptor] = self.read[descriptor], size
        return os.pread(self.files[descriptor], size - start, start).decode("utf-8", "replace")

    def tell(self, kind: str, **content: Any) -> None:
        """Take a message, after the text that preceded it."""
        self.take_text(1)
        self._take(kind, cells.plain(content))

    def take_text(self, descriptor: int) -> None:
        """Turn what was written since the last output into one."""
        if text := self.new_text(descriptor):
            self._take("stream", {"name": ("stdout", "stderr")[descriptor - 1], "text": text})

    def _take(self, kind: str, content: dict[str, Any]) -> None:
        header = {"msg_type": kind}
        message = {"header": header, **header, "parent_header": {}, "content": content}
        cell = self.client.nb.cells[self.position]
        self.client.process_message(message, cell, self.position)


class Publisher(DisplayPublisher):
    """Hands `display()` to the recorder."""

    def publish(  # type: ignore[override]
        self,
        data: Any,
        metadata: Any = None,
        *,
        transient: Any = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        """Record displayed data."""
        kind = "update_display_data" if update else "display_data"
        self.shell.tell(kind, data=data, metadata=metadata or {}, transient=transient or {})

    def clear_output(self, wait: bool = False) -> None:
        """Drop what the cell has shown."""
        self.shell.tell("clear_output", wait=wait)


class Results(DisplayHook):
    """Hands the value of a cell's last line to the recorder."""

    def write_output_prompt(self) -> None:
        """No prompt."""

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        """Record the value."""
        content = {"data": format_dict, "metadata": md_dict or {}}
        count = self.shell.execution_count  # type: ignore[union-attr]
        self.shell.tell("execute_result", **content, execution_count=count)  # type: ignore[union-attr]

    def finish_displayhook(self) -> None:
        """Nothing to print."""
        self._is_active = False


class Shell(InteractiveShell):
    """An IPython shell whose outputs go to a recorder; no terminal, no thread, no history file."""

    tell: Callable[..., None]
    display_pub_class = Type(Publisher)
    displayhook_class = Type(Results)

    def enable_gui(self, gui: str | None = None) -> None:
        """There is no event loop to join."""

    def ask_exit(self) -> None:
        """`exit` and `quit` are errors, as `sys.exit` is."""
        raise SystemExit("exit was called")

    def showtraceback(self, *arguments: Any, exception_only: bool = False, **named: Any) -> None:
        """Where `sys.exit` stands is worth knowing."""
        super().showtraceback(*arguments, **named)

    def _showtraceback(self, etype: type, evalue: BaseException, stb: list[str]) -> None:
        self.tell("error", ename=etype.__name__, evalue=str(evalue), traceback=stb)


def new_shell(recorder: Recorder) -> Shell:
    """The page's shell; figures reach it whether or not the parent has imported pyplot."""
    shell: Shell = Shell.instance(config=Config(cells.SHELL_SETTINGS))
    shell.tell = recorder.tell
    if backend := sys.modules.get("matplotlib_inline.backend_inline"):
        # Imported before the shell existed: without this every figure is the text "<Figure ...>".
        activate_matplotlib("inline")  # type: ignore[no-untyped-call]
        backend.configure_inline_support(shell, "inline")
    return shell


def run(page: Page, scope: watch.Scope, stderr: int) -> NoReturn:
    """Execute the page, add the result or the failure to the notes, and leave."""
    try:
        settle(page, scope)
        recorder = Recorder(page, stderr)
        done: dict[str, Any] = execute(page, new_shell(recorder), recorder, scope)
    except PageError as failure:
        done = {"failure": asdict(failure)}
    except BaseException:
        ours = PageError(0, None, "the stage itself failed", traceback.format_exc())
        done = {"failure": asdict(ours)}
    processes.kill_below(os.getpid())
    watch.finish(scope)
    note(scope, "done", json.dumps(done))
    os._exit(0)


def note(scope: watch.Scope, kind: str, text: str) -> None:
    """Add a line to the notes."""
    with open(scope.notes, "ab") as notes:
        notes.write(f"{kind}\t{text}\n".encode())


def settle(page: Page, scope: watch.Scope) -> None:
    """Become a process of one's own: session, folder, threads, no input, watched files."""
    os.setsid()
    processes.adopt_orphans(die_with_parent=True)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(page.path.parent)
    sys.argv = [""]
    sys.path[: 0 if sys.flags.safe_path else 1] = [""]  # the page's folder, as in a kernel
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    os.environ.update(watch.environment(scope))
    watch.start(scope)


def execute(page: Page, shell: Shell, recorder: Recorder, scope: watch.Scope) -> dict[str, Any]:
    """The page's executed notebook."""
    faulthandler.enable(2)  # a crash leaves its stack on standard error
    faulthandler.register(STACK_SIGNAL, file=2, all_threads=False)

    def run_cell(cell: Cell, place: NotebookNode) -> int | None:
        note(scope, "cell", str(cell.number))
        recorder.position, recorder.stderr.line = cell.position, None
        recorder.client.clear_before_next_output = False
        shell.execution_count = cell.number  # IPython does not count empty cells
        result = shell.run_cell(cell.source, store_history=True)  # type: ignore[no-untyped-call]
        error = result.error_before_exec or result.error_in_exec
        recorder.take_text(1)
        if error is not None and not any(one.output_type == "error" for one in place.outputs):
            recorder.tell("error", ename=type(error).__name__, evalue=str(error), traceback=[])
        recorder.take_text(2)
        return recorder.stderr.line

    def ask(expression: str, cell: int) -> dict[str, Any]:
        value = shell.user_expressions({"value": expression})["value"]  # type: ignore[no-untyped-call]
        cells.refuse_stderr(recorder.new_text(2), cell, None)
        if recorder.new_text(1):
            raise PageError(cell, None, f"the expression {expression!r} prints")
        return value  # type: ignore[no-any-return]

    executed = cells.execute(page, recorder.client, run_cell, ask)
    cells.refuse_stderr(recorder.new_text(2), len(page.cells), None)
    return executed
