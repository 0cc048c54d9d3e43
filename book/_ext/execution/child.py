"""What a forked child does: run a page's cells in an IPython shell and hand the outputs back.

Standard output and error are caught at the level of file descriptors, so that what C code, a
subprocess or a forked rank writes is seen too.  Linux only.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn, cast

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import activate_matplotlib
from traitlets import Type
from traitlets.config import Config

from execution import outputs, processes, watch
from execution.evaluation import PageValues
from execution.notebooks import executed_notebook
from execution.pages import Cell, Page
from execution.reports import CellError

CELL_FILE = re.compile(r"<ipython-input-(\d+)-")
CELL_IN_WARNING = re.compile(r"<ipython-input-(\d+)-\w+>:(\d+)")
STACK_SIGNAL = signal.SIGUSR2  # asks a child that hangs where it is

Send = Callable[[dict[str, Any]], None]


class CellStderr(io.TextIOWrapper):
    """A text file on descriptor 2 that remembers which line of the cell wrote first."""

    line: int | None = None

    def write(self, text: str) -> int:
        """Write, and look up the stack for the cell."""
        if self.line is None and text:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and self.line is None:
                if CELL_FILE.match(frame.f_code.co_filename):
                    self.line = frame.f_lineno
                frame = frame.f_back
        return super().write(text)


class Streams:
    """Descriptors 1 and 2, each on a file in memory that every process of the page appends to."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._former = (sys.stdout, sys.stderr)  # modules loaded before the fork may hold these
        for descriptor in (1, 2):
            self._files[descriptor] = memory_file(f"fd{descriptor}")
            self._read[descriptor] = 0
            os.dup2(self._files[descriptor], descriptor)
        self.stderr = CellStderr(
            io.FileIO(2, "w", closefd=False), encoding="utf-8", line_buffering=True
        )
        out = io.FileIO(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(out, encoding="utf-8", line_buffering=True)
        sys.stderr = self.stderr

    def new_text(self, descriptor: int) -> str:
        """What was written since the last call, by whomever."""
        for stream in (sys.stdout, sys.stderr, *self._former):
            stream.flush()
        ctypes.CDLL(None).fflush(None)
        size = os.fstat(self._files[descriptor]).st_size
        start, self._read[descriptor] = self._read[descriptor], size
        return os.pread(self._files[descriptor], size - start, start).decode("utf-8", "replace")


def memory_file(name: str) -> int:
    """Descriptor of a file in memory; writers never block and never overwrite one another."""
    descriptor = os.memfd_create(name)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


class Recorder:
    """The outputs of the running cell, in the order in which they came."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._displays: dict[str, list[dict[str, Any]]] = {}
        self.outputs: list[dict[str, Any]] = []
        self.error: tuple[type[BaseException], BaseException, str] | None = None
        self._clear_before_next = False

    def begin(self) -> None:
        """Start a cell."""
        self.outputs, self.error, self._clear_before_next = [], None, False
        self._streams.stderr.line = None

    def add(self, output: dict[str, Any]) -> None:
        """Append an output after the text that preceded it."""
        self.take_text()
        self._append(output)

    def take_text(self) -> None:
        """Turn what was printed since the last output into one."""
        text = self._streams.new_text(1)
        if text:
            self._append({"output_type": "stream", "name": "stdout", "text": text})

    def _append(self, output: dict[str, Any]) -> None:
        if self._clear_before_next:
            self.outputs, self._clear_before_next = [], False
        self.outputs.append(output)

    def show(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        *,
        display_id: str | None,
        update: bool,
    ) -> None:
        """Add displayed data, or replace what is displayed under the same id."""
        content = {"data": outputs.plain_bundle(data), "metadata": outputs.plain_bundle(metadata)}
        if update:
            for shown in self._displays.get(display_id or "", []):
                shown.update(content)
            return
        output = {"output_type": "display_data", **content}
        if display_id is not None:
            self._displays.setdefault(display_id, []).append(output)
        self.add(output)

    def clear(self, wait: bool) -> None:
        """Drop the outputs of this cell, at once or when the next one comes."""
        self.take_text()
        self._clear_before_next = wait
        if not wait:
            self.outputs = []


class Publisher(DisplayPublisher):
    """Hands `display()` to the recorder."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: str = "",
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        """Record displayed data."""
        display_id = (transient or {}).get("display_id")
        cast(Shell, self.shell).recorder.show(
            data, metadata or {}, display_id=display_id, update=update
        )

    def clear_output(self, wait: bool = False) -> None:
        """Drop what the cell has shown."""
        cast(Shell, self.shell).recorder.clear(wait)


class Results(DisplayHook):
    """Hands the value of a cell's last line to the recorder."""

    def write_output_prompt(self) -> None:
        """No prompt."""

    def write_format_data(
        self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None
    ) -> None:
        """Record the value."""
        shell = cast(Shell, self.shell)
        shell.recorder.add(
            {
                "output_type": "execute_result",
                "execution_count": shell.execution_count,
                "data": outputs.plain_bundle(format_dict),
                "metadata": outputs.plain_bundle(md_dict or {}),
            }
        )

    def finish_displayhook(self) -> None:
        """Nothing to print."""
        self._is_active = False


class Shell(InteractiveShell):
    """An IPython shell whose outputs go to a recorder; no terminal, no thread, no history file."""

    recorder: Recorder
    display_pub_class = Type(Publisher)
    displayhook_class = Type(Results)

    def enable_gui(self, gui: str | None = None) -> None:
        """There is no event loop to join."""

    def ask_exit(self) -> None:
        """`exit` and `quit` are errors, as `sys.exit` is."""
        raise SystemExit("exit was called")

    def _showtraceback(
        self, etype: type[BaseException], evalue: BaseException, stb: list[str]
    ) -> None:
        self.recorder.error = (etype, evalue, "\n".join(stb))


def new_shell(recorder: Recorder) -> Shell:
    """The page's shell; figures reach it whether or not the parent has imported pyplot."""
    shell: Shell = Shell.instance(config=Config(outputs.SHELL_SETTINGS))
    shell.recorder = recorder
    backend = sys.modules.get("matplotlib_inline.backend_inline")
    if backend is not None:
        # Imported before the shell existed: without this every figure is the text "<Figure ...>".
        activate_matplotlib("inline")  # type: ignore[no-untyped-call]
        backend.configure_inline_support(shell, "inline")
    return shell


def run(page: Page, send: Send, stack_file: int, scope: watch.Scope) -> NoReturn:
    """Execute the page and leave; the result, or the failure, goes through `send`."""
    started = time.perf_counter()
    try:
        settle(page, stack_file=stack_file, scope=scope)
        streams = Streams()
        recorder = Recorder(streams)
        result = execute(page, new_shell(recorder), recorder, streams, send)
        message = {
            "done": {**result, "used": watch.used(scope), "versions": watch.loaded_versions()}
        }
    except CellError as failure:
        message = {"failed": asdict(failure)}
    except BaseException:
        ours = CellError(0, None, "the stage itself failed", traceback.format_exc())
        message = {"failed": asdict(ours)}
    processes.kill_descendants(os.getpid())
    message["seconds"] = {"wall": time.perf_counter() - started, "cpu": watch.cpu_seconds()}
    send(message)
    os._exit(0)


def settle(page: Page, *, stack_file: int, scope: watch.Scope) -> None:
    """Become a process of one's own: session, folder, one thread, no input, watched files."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    processes.adopt_orphans()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(page.path.parent)
    sys.argv = [""]
    sys.path[: 0 if sys.flags.safe_path else 1] = [""]  # the page's folder, as in a kernel
    faulthandler.enable(stack_file)  # a crash leaves its stack there
    faulthandler.register(STACK_SIGNAL, file=stack_file, all_threads=False)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    os.environ.update(watch.environment(scope))
    watch.start(scope)


def execute(
    page: Page, shell: Shell, recorder: Recorder, streams: Streams, send: Send
) -> dict[str, Any]:
    """The page's executed notebook."""
    cells: list[list[dict[str, Any]]] = []
    values = PageValues(page, lambda text: ask(text, len(cells), shell, streams))
    values.evaluate_after(0)
    for cell in page.cells:
        send({"cell": cell.number})
        cells.append(run_cell(cell, shell, recorder, streams))
        values.evaluate_after(cell.number)
    values.evaluate_the_rest()
    refuse_stderr(len(page.cells), streams)
    return executed_notebook(page, cells, values.found)


def run_cell(
    cell: Cell, shell: Shell, recorder: Recorder, streams: Streams
) -> list[dict[str, Any]]:
    """The outputs of one cell; raises CellError for whatever a reader must not see."""
    recorder.begin()
    if "skip-execution" in cell.tags:
        return []
    shell.execution_count = cell.number  # IPython does not count empty cells
    result = shell.run_cell(cell.source, store_history=True)  # type: ignore[no-untyped-call]
    recorder.take_text()
    error = result.error_before_exec or result.error_in_exec
    if recorder.error is not None or error is not None:
        _, shown, text = recorder.error or (type(error), error, "")
        if not cell.may_raise:
            raise CellError(cell.number, line_of_error(shown, cell.number), describe(shown), text)
        recorder.add(
            {
                "output_type": "error",
                "ename": type(shown).__name__,
                "evalue": str(shown),
                "traceback": text.splitlines(),
            }
        )
    refuse_stderr(cell.number, streams)
    if outputs.missing_image(recorder.outputs, expected=cell.shows_figure):
        raise CellError(cell.number, None, "a figure cell without an image")
    return outputs.merged_streams(recorder.outputs)


def refuse_stderr(cell_number: int, streams: Streams) -> None:
    """Fail the page if anything, in any process, wrote on standard error."""
    text = streams.new_text(2)
    if text:
        warning = CELL_IN_WARNING.search(text)
        line = streams.stderr.line
        if warning and int(warning[1]) == cell_number:
            line = int(warning[2])
        first = text.strip().splitlines()[0] if text.strip() else repr(text)
        raise CellError(cell_number, line, f"wrote on standard error: {first}", text)


def ask(expression: str, cell_number: int, shell: Shell, streams: Streams) -> dict[str, Any]:
    """What IPython says an expression's value is; it may say nothing else."""
    answers = shell.user_expressions({"value": expression})  # type: ignore[no-untyped-call]
    value: dict[str, Any] = answers["value"]
    refuse_stderr(cell_number, streams)
    if streams.new_text(1):
        raise CellError(cell_number, None, f"the expression {expression!r} prints")
    return value


def line_of_error(error: BaseException, cell_number: int) -> int | None:
    """Line of the cell at which an exception left it, or at which it cannot be parsed."""
    if isinstance(error, SyntaxError) and CELL_FILE.match(error.filename or ""):
        return error.lineno
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if (match := CELL_FILE.match(frame.f_code.co_filename)) and int(match[1]) == cell_number
    ]
    return lines[-1] if lines else None


def describe(error: BaseException) -> str:
    """Name and text of an exception, on one line."""
    lines = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
