"""Real processes: a function run on R ranks that form a group, and a count of what they send.

`run` starts R processes of this machine, joins them into a gloo group and brings back what the
function returned on each. `Traffic` counts what a rank hands over to the collectives, `Wire` what
its sockets sent.

Page: training/collectives, training/zero. Left out: ranks on several machines (torchrun).
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")

PRELOADED = (
    "torch",
    "torch.distributed",
    "llmbook.processes",
)  # once, by the fork server, for all ranks
THREADS = Path("/proc/self/task")


class RankFailed(RuntimeError):  # noqa: N818 (reads as what happened)
    """A rank raised, was killed or left; the message names it and shows its traceback."""


class Results(list[T]):
    """What each rank returned, by rank; `printed` holds what each wrote to its standard output."""

    def __init__(self, values: list[T], printed: list[str]) -> None:
        super().__init__(values)
        self.printed = printed


@dataclass(frozen=True)
class Seat:
    """A rank's place: its number, how many there are, and the folder that they share."""

    rank: int
    num_ranks: int
    folder: Path

    @property
    def printed(self) -> Path:
        """The file that takes what the rank prints."""
        return self.folder / f"printed-{self.rank}"

    @property
    def stack(self) -> Path:
        """The file into which a rank that is asked writes where it stands."""
        return self.folder / f"stack-{self.rank}"


def run(
    function: Callable[..., T], *args: Any, num_ranks: int, deadline: float = 60.0, **keywords: Any
) -> Results[T]:
    """Run `function(*args, **keywords)` on R ranks of a gloo group and return what each returned.

    Every rank has one thread. The first rank that fails stops the others; no process outlives the
    call. Arguments and results are pickled, so each rank gets copies of its own.

    Raises:
        ValueError: if `num_ranks` is not positive, or `function` does not stand in an importable
        module.
        RankFailed: if a rank raised, was killed or left.
        TimeoutError: if a rank gave no answer in `deadline` seconds; the message shows where each
        one stands.

    >>> run(dist.get_rank, num_ranks=3)
    [0, 1, 2]
    """
    return launch(
        Task(in_a_group, function, args, keywords), num_ranks=num_ranks, deadline=deadline
    )


def run_alone(function: Callable[..., T], *args: Any, deadline: float = 60.0, **keywords: Any) -> T:
    """Run the function in a process of its own, without a group, and return what it returned.

    Raises as `run` does.

    >>> run_alone(dist.is_initialized)
    False
    """
    return launch(Task(without_group, function, args, keywords), num_ranks=1, deadline=deadline)[0]


@dataclass(frozen=True)
class Task(Generic[T]):
    """What every rank does: `call` prepares it and calls the function."""

    call: Callable[[Seat, Callable[[], T]], T]
    function: Callable[..., T]
    args: tuple[Any, ...]
    keywords: dict[str, Any]

    def done(self, seat: Seat) -> T:
        """What the function returns at this seat."""
        return self.call(seat, partial(self.function, *self.args, **self.keywords))


def in_a_group(seat: Seat, function: Callable[[], T]) -> T:
    """Join the group, then call the function."""
    meeting = f"file://{seat.folder}/rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=seat.rank, world_size=seat.num_ranks)
    return function()


def without_group(seat: Seat, function: Callable[[], T]) -> T:
    """Call the function."""
    return function()


def launch(task: Task[T], *, num_ranks: int, deadline: float) -> Results[T]:
    """Start the ranks, collect their answers, and leave nothing behind."""
    if num_ranks < 1:
        raise ValueError(f"num_ranks {num_ranks} is not positive")
    require_importable(task.function)
    orders = pickle.dumps(task)
    start = context(task.function.__module__)
    forked = isinstance(start, ForkContext)
    with TemporaryDirectory(prefix="ranks-", ignore_cleanup_errors=True) as folder:
        seats = [Seat(rank, num_ranks, Path(folder)) for rank in range(num_ranks)]
        processes: list[BaseProcess] = []
        ends: list[Connection] = []
        try:
            for seat in seats:
                ours, theirs = start.Pipe()
                parent = os.getpid() if forked else None
                process = start.Process(
                    target=serve, args=(seat, orders, theirs, parent), daemon=True
                )
                process.start()
                theirs.close()  # so that the rank's death reads as the end of the file
                processes.append(process)
                ends.append(ours)
            values = answers(processes, ends, seats, deadline)
            return Results(values, [seat.printed.read_text(errors="replace") for seat in seats])
        finally:
            for started in processes:
                started.kill()
            for started in processes:
                started.join()
                started.close()
            for end in ends:
                end.close()


def context(module: str = "") -> ForkContext | ForkServerContext:
    """Fork where this process has one thread (seen, not declared), else a fork server.

    A fork copies one thread only: after a threaded torch operator the copy waits for threads that
    it lacks. The server starts at the first launch of this process and imports that launch's
    module, too.
    """
    if THREADS.is_dir() and len(os.listdir(THREADS)) == 1:
        return multiprocessing.get_context("fork")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([*PRELOADED, module] if module else [*PRELOADED])
    return server


def require_importable(function: Callable[..., Any]) -> None:
    """Refuse what a fresh process could not import by name."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or not name or "<" in name:
        raise ValueError(
            f"function {name or function!r} of {module} cannot run on ranks: they import what they "
            "run, so it has to stand in a module, not in a cell, a script, a lambda or a function"
        )


def answers(
    processes: list[BaseProcess], ends: list[Connection], seats: list[Seat], deadline: float
) -> list[Any]:
    """What each rank returned, or the first failure as an error."""
    values: dict[int, Any] = {}
    waiting = {end: rank for rank, end in enumerate(ends)}
    until = time.monotonic() + deadline
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, until - time.monotonic()))
        if not ready:
            silent = sorted(waiting.values())
            raise TimeoutError(
                f"{named(silent)} of {len(seats)} gave no answer in {deadline:g} s\n"
                + "\n".join(where_it_stands(processes[rank], seats[rank]) for rank in silent)
            )
        for end in ready:
            assert isinstance(end, Connection)
            rank = waiting.pop(end)
            try:
                succeeded, value = pickle.loads(end.recv_bytes())
            except (EOFError, ConnectionError):
                succeeded, value = False, ""
            if not succeeded:
                raise RankFailed(cause(processes, seats, rank, value))
            values[rank] = value
    return [values[rank] for rank in range(len(seats))]


def cause(processes: list[BaseProcess], seats: list[Seat], rank: int, error: str) -> str:
    """Why the launch failed: a rank that died comes first, as others then lose their connection."""
    if error:
        wait([process.sentinel for process in processes], timeout=0.1)  # one may be about to end
    else:
        processes[rank].join(1)
    dead = [seat.rank for seat in seats if not processes[seat.rank].is_alive()]
    if dead:
        rank, what = dead[0], ending(processes[dead[0]].exitcode)
    else:
        what = f"raised\n{error}"
    printed = (
        seats[rank].printed.read_text(errors="replace") if seats[rank].printed.exists() else ""
    )
    return f"rank {rank} of {len(seats)} {what}" + (
        f"\nIt had printed\n{printed}" if printed else ""
    )


def named(ranks: list[int]) -> str:
    """The ranks in words.

    >>> named([2]), named([0, 3])
    ('rank 2', 'ranks 0, 3')
    """
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def ending(exit_code: int | None) -> str:
    """How a process ended that gave no answer.

    >>> ending(-9), ending(3)
    ('was killed by SIGKILL', 'left with exit code 3 before it gave an answer')
    """
    if exit_code is not None and exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"left with exit code {exit_code} before it gave an answer"


def where_it_stands(process: BaseProcess, seat: Seat) -> str:
    """The stack of a rank that gives no answer, written by its own signal handler."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGUSR1)
    for _ in range(20):
        if seat.stack.exists() and seat.stack.stat().st_size:
            break
        time.sleep(0.01)
    lines = seat.stack.read_text().splitlines() if seat.stack.exists() else []
    own = list(takewhile(lambda line: f'"{__file__}"' not in line, lines[1:]))
    return "\n".join([f"rank {seat.rank} stands at", *(own or ["  (no line of its own)"])])


# ------------------------------------------------------------------------------- in the rank


def serve(seat: Seat, orders: bytes, answer: Connection, parent: int | None) -> NoReturn:
    """What a rank does: set itself up, run the function, send its answer, and wait to be ended.

    It waits so that the others keep their connections to it: what they would raise on losing one
    could hide the first error.
    """
    die_with_parent(parent)
    with seat.printed.open("ab") as printed, seat.stack.open("w") as stack:
        os.dup2(printed.fileno(), 1)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 (lives as long as the rank)
        faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
        torch.set_num_threads(1)
        try:
            task = pickle.loads(orders)
            message = pickle.dumps((True, task.done(seat)))
        except BaseException as error:
            message = pickle.dumps((False, own_traceback(error)))
        sys.stdout.flush()
        with suppress(OSError, EOFError):
            answer.send_bytes(message)
            answer.recv_bytes()  # returns when the parent ends this rank, or has ended itself
        os._exit(0)


def own_traceback(error: BaseException) -> str:
    """The traceback without this module's frames, where it has others."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))


def die_with_parent(parent: int | None) -> None:
    """Ask Linux to kill this rank when the process that started it ends.

    `parent` is that process where it is known (a fork). A fork server ends when nobody holds the
    other end of its pipe any more, and hands a copy of that end to each rank, which therefore lets
    it go.
    """
    if sys.platform != "linux":
        return
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is None:
        if (pipe := getattr(forkserver._forkserver, "_forkserver_alive_fd", None)) is not None:
            os.close(pipe)
    elif os.getppid() != parent:  # it ended before we could ask
        os._exit(1)


# ----------------------------------------------------------------------------------- traffic

KINDS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier",
    "reduce", "gather", "scatter", "send", "recv",
)  # fmt: skip
NAMESPACES = ("c10d", "_c10d_functional")
NOT_SENDING = ("wait_tensor", "_wrap_tensor_autograd", "check_for_nan")


@dataclass(frozen=True)
class Collective:
    """One call of a collective on one rank, as torch's dispatcher saw it."""

    operator: str  # torch's own name, such as c10d::_allgather_base_
    given_bytes: int  # of the tensors that the rank hands over
    taken_bytes: int  # of the tensors that it gets
    num_ranks: int  # of the group

    @property
    def kind(self) -> str:
        """The collective's name in this book.

        >>> Collective("c10d::_allgather_base_", 8, 32, 4).kind
        'all_gather'
        """
        plain = self.operator.split("::")[1].replace("_", "")
        return next((kind for kind in KINDS if kind.replace("_", "") in plain), self.operator)


class Traffic(TorchDispatchMode):
    """Notes every collective that this process calls while the mode is active, in order.

    It looks at the operators of torch's two namespaces for collectives and at the sizes of their
    tensors: it serves hand-written code, FSDP and DTensor alike and knows no scheme. What is handed
    over is not yet what is sent: `llmbook.costs.collectives` derives that from kind and size,
    `Wire` asks the kernel.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Collective] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch's compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in NAMESPACES and func._opname not in NOT_SENDING:
            self.calls.append(collective(func, args, kwargs or {}, result))
        return result


def collective(
    operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Collective:
    """The note of one call: c10d names its outputs, the functional form returns them."""
    names = [argument.name for argument in operator._schema.arguments]
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    outputs = [value for name, value in values.items() if name.startswith("out")]
    given = [value for name, value in values.items() if not name.startswith("out")]
    if operator.namespace == "_c10d_functional":
        outputs = [result]
    given_bytes = tensor_bytes(given)
    taken_bytes = tensor_bytes(outputs) or given_bytes  # in place where no output is named
    return Collective(operator.name(), given_bytes, taken_bytes, group_size(values))


def tensor_bytes(values: Any) -> int:
    """Bytes of all tensors in nested lists; whatever is no tensor counts nothing."""
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    return sum(map(tensor_bytes, values)) if isinstance(values, list | tuple) else 0


def group_size(arguments: dict[str, Any]) -> int:
    """How many ranks the group of a call has."""
    if "process_group" in arguments:
        return int(dist.ProcessGroup.unbox(arguments["process_group"]).size())
    group = arguments["group_name"]
    if isinstance(group, str):  # the functional collectives name it
        group = dist.distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]
    return int(group.size())


class Wire:
    """Adds up what this rank's sockets send inside its `with` blocks, as the kernel counts it.

    Payload without headers, retransmissions taken off (TCP_INFO, Linux); `sent_bytes` is None
    elsewhere. A barrier on either side lets every rank finish first; its few bytes and gloo's own
    messages count, too.
    """

    sent_bytes: int | None = None

    def __enter__(self) -> Wire:
        dist.barrier()
        self.before = sent_by_sockets()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        dist.barrier()
        after = sent_by_sockets()
        if after is not None and self.before is not None:
            self.sent_bytes = (self.sent_bytes or 0) + after - self.before


def sent_by_sockets() -> int | None:
    """Bytes that this process's TCP sockets have sent; None where the kernel does not say."""
    if sys.platform != "linux":
        return None
    return sum(sent_by_socket(descriptor) for descriptor in tcp_sockets())


def tcp_sockets() -> Iterator[int]:
    """File descriptors of this process's TCP sockets."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found = socket.socket(fileno=os.dup(int(name)))
                if (
                    found.family in (socket.AF_INET, socket.AF_INET6)
                    and found.type == socket.SOCK_STREAM
                ):
                    yield int(name)
                found.close()


def sent_by_socket(descriptor: int) -> int:
    """Payload that one TCP socket has sent, retransmissions taken off: fields of `tcp_info`."""
    TCP_INFO, BYTES_SENT = (
        11,
        200,
    )  # the option, and the place of tcpi_bytes_sent and tcpi_bytes_retrans
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
    if len(info) < BYTES_SENT + 16:
        return 0
    sent, again = struct.unpack_from("QQ", info, BYTES_SENT)
    return int(sent - again)
