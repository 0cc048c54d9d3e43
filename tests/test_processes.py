"""Ranks answer, fail, die and hang: one clear error says so, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the functional collectives ask for it: once here, not in every rank
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

from llmbook.processes import (
    KINDS,
    NOT_SENDING,
    Collective,
    RankFailed,
    Traffic,
    Wire,
    collective,
    context,
    run,
    run_alone,
)

# What the ranks run: functions of a module, since every rank imports what it runs.


def report(word, *, shout):
    print(f"rank {dist.get_rank()} says {word}")
    os.system("echo and so does its shell")
    return dist.get_rank(), dist.get_world_size(), word.upper() if shout else word


def sum_of_ranks():
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    return total.item()


def note_and(folder, what):
    """Leave the process id behind, then do `what` on rank 1 while the others wait for it."""
    (folder / f"{dist.get_rank()}").write_text(str(os.getpid()))
    dist.barrier()
    if dist.get_rank() == 1:
        print("rank 1 was here")
        if what == "raise":
            raise LookupError("no such thing")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "leave":
            os._exit(3)
        if what == "hang":
            time.sleep(600)
    dist.all_reduce(torch.zeros(1))


def send_early_read_late(numel):
    """Rank 0 has done its part long before rank 1 reads what it sent."""
    values = torch.arange(float(numel))
    if dist.get_rank() == 0:
        dist.send(values, 1)
        return 0.0
    time.sleep(0.3)
    dist.recv(values.zero_(), 0)
    return values.sum().item()


def num_threads():
    return torch.get_num_threads()


def large(numel):
    return torch.full((numel,), float(dist.get_rank()))


def unpicklable():
    return lambda: None


def counted(numel):
    R, x = dist.get_world_size(), torch.ones(numel)
    pair = dist.new_group([0, 1])
    with Traffic() as traffic:
        dist.all_reduce(x)
        dist.all_gather_single(torch.empty(numel * R), x)
        dist.reduce_scatter_single(torch.empty(numel // R), x)
        dist.all_to_all_single(torch.empty(numel), x)
        dist.broadcast(x, 0)
        dist.all_gather([torch.empty(numel) for _ in range(R)], x)
        functional.all_gather_single(x, 0, dist.group.WORLD).sum()
        if dist.get_rank() < 2:
            dist.all_reduce(x.double(), group=pair)
        dist.barrier()
    return traffic.calls


def on_the_wire(kind, numel):
    R, x = dist.get_world_size(), torch.ones(numel)
    wire = Wire()
    for _ in range(2):  # the blocks of one counter add up
        with wire:
            if kind == "all_reduce":
                dist.all_reduce(x)
            elif kind == "all_gather":
                dist.all_gather_single(torch.empty(numel * R), x)
            elif kind == "reduce_scatter":
                dist.reduce_scatter_single(torch.empty(numel // R), x)
        dist.all_reduce(x)  # outside
    return wire.sent_bytes


def pids(folder):
    return [int((folder / str(rank)).read_text()) for rank in range(3)]


def alive(pid):
    return Path(f"/proc/{pid}").exists() if sys.platform == "linux" else signal_reaches(pid)


def signal_reaches(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(processes, seconds=10):
    until = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, processes))


def test_every_rank_answers_and_its_text_comes_back_by_rank():
    results = run(report, "good day", num_ranks=3, shout=True)
    assert results == [(0, 3, "GOOD DAY"), (1, 3, "GOOD DAY"), (2, 3, "GOOD DAY")]
    for rank, text in enumerate(results.printed):
        assert text == f"rank {rank} says good day\nand so does its shell\n"


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_the_ranks_form_a_group(num_ranks):
    assert run(sum_of_ranks, num_ranks=num_ranks) == [num_ranks * (num_ranks - 1) / 2] * num_ranks


def test_every_rank_has_one_thread():
    assert run(num_threads, num_ranks=2) == [1, 1]


def test_results_larger_than_a_pipe_come_back():
    results = run(large, 3_000_000, num_ranks=2)
    assert [result.sum().item() for result in results] == [0.0, 3_000_000.0]


def test_what_a_rank_sent_before_it_was_done_can_be_read_later():
    numel = 500_000
    assert run(send_early_read_late, numel, num_ranks=2)[1] == pytest.approx(
        numel * (numel - 1) / 2
    )


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        (
            "raise",
            RankFailed,
            ["rank 1 of 3 raised", "LookupError: no such thing", "note_and", "It had printed"],
        ),
        ("kill", RankFailed, ["rank 1 of 3 was killed by SIGKILL"]),
        ("leave", RankFailed, ["rank 1 of 3 left with exit code 3"]),
        (
            "hang",
            TimeoutError,
            ["ranks 0, 1, 2 of 3 gave no answer in 2 s", "in note_and", "rank 1 stands at"],
        ),
    ],
)
def test_a_failure_is_one_error_that_names_the_rank_and_leaves_nothing(
    tmp_path, what, error, words
):
    started = time.monotonic()
    with pytest.raises(error) as caught:
        run(note_and, tmp_path, what, num_ranks=3, deadline=2 if what == "hang" else 30)
    for word in words:
        assert word in str(caught.value)
    assert time.monotonic() - started < 15, "the other ranks were not stopped at once"
    assert gone(pids(tmp_path))


def test_the_first_error_is_told_ten_times_over(tmp_path):
    """The others lose nothing before they are stopped, so no lost connection is told instead."""
    for _ in range(10):
        with pytest.raises(RankFailed, match=r"rank 1 of 3 raised[\s\S]*LookupError"):
            run(note_and, tmp_path, "raise", num_ranks=3, deadline=30)


def test_a_hang_names_the_line_where_the_rank_stands(tmp_path):
    with pytest.raises(TimeoutError) as caught:
        run(note_and, tmp_path, "hang", num_ranks=3, deadline=2)
    source = Path(__file__).read_text().splitlines()
    line = next(n for n, text in enumerate(source, 1) if "time.sleep(600)" in text)
    assert f"line {line} in note_and" in str(caught.value)


def test_a_result_that_cannot_travel_is_an_error_of_its_rank():
    with pytest.raises(RankFailed, match=r"raised[\s\S]*pickle"):
        run(unpicklable, num_ranks=2)


def test_what_ranks_cannot_import_is_refused_in_one_sentence():
    def local():
        return None

    for function in (lambda: None, local):
        with pytest.raises(ValueError, match="has to stand in a module") as caught:
            run(function, num_ranks=2)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="num_ranks 0 is not positive"):
        run(num_threads, num_ranks=0)


def test_a_process_alone_has_no_group_and_leaves_none():
    assert run_alone(dist.is_initialized) is False
    assert not dist.is_initialized()


SCRIPT = """
import sys, time, torch
from pathlib import Path
from tests.test_processes import note_and, sum_of_ranks
from llmbook.processes import context, run
if __name__ == "__main__":
    threads, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(threads)
    torch.randn(800, 800) @ torch.randn(800, 800)  # starts the threads
    print(type(context()).__name__, run(sum_of_ranks, num_ranks=3, deadline=60), flush=True)
    run(note_and, folder, "hang", num_ranks=3, deadline=300)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="a fork needs /proc, and so does a parent's death"
)
@pytest.mark.parametrize(("threads", "method"), [(1, "ForkContext"), (2, "ForkServerContext")])
def test_ranks_start_from_any_process_and_die_with_it(tmp_path, threads, method):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    one = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, script, str(threads), tmp_path],
        env={**os.environ, **one, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert parent.stdout.readline() == f"{method} [3.0, 3.0, 3.0]\n"
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("[012]"))) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
        assert all(map(alive, pids(tmp_path)))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert gone(pids(tmp_path))


def test_traffic_is_what_the_calls_hand_over():
    N, R = 24, 3  # numbers of four bytes
    first, *_, last = run(counted, N, num_ranks=R)
    found = [(call.kind, call.given_bytes, call.taken_bytes, call.num_ranks) for call in first]
    assert found == [
        ("all_reduce", 4 * N, 4 * N, R),
        ("all_gather", 4 * N, 4 * N * R, R),
        ("reduce_scatter", 4 * N, 4 * N // R, R),
        ("all_to_all", 4 * N, 4 * N, R),
        ("broadcast", 4 * N, 4 * N, R),
        ("all_gather", 4 * N, 4 * N * R, R),
        ("all_gather", 4 * N, 4 * N * R, R),
        ("all_reduce", 8 * N, 8 * N, 2),
        found[-1],
    ]
    assert found[-1][0] == "barrier"
    assert len(last) == len(first) - 1, "rank 2 is in no pair"


def test_every_collective_of_torch_has_a_name_here():
    schemas = torch._C._jit_get_all_schemas()
    names = {
        schema.name
        for schema in schemas
        if schema.name.startswith(("c10d::", "_c10d_functional::"))
    }
    other = {*NOT_SENDING, "batch_p2p_ops"}
    for name in names:
        if name.split("::")[1] not in other:
            assert Collective(name, 0, 0, 1).kind in KINDS, name


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is Linux's")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all_reduce", 6_000_000),
        ("all_gather", 12_000_000),
        ("reduce_scatter", 6_000_000),
        ("none", 0),
    ],
)
def test_the_wire_carries_what_the_ring_formula_says_but_twice_for_reduce_scatter(kind, expected):
    """2 S (R-1)/R, s (R-1); gloo's reduce-scatter sends as its all-reduce does, not S (R-1)/R."""
    for sent in run(on_the_wire, kind, 1_000_000, num_ranks=4):
        assert 2 * expected <= sent <= 2.01 * expected + 2_000


def test_a_thread_more_decides_between_fork_and_server():
    many = len(os.listdir("/proc/self/task")) > 1 if sys.platform == "linux" else True
    assert type(context()).__name__ == ("ForkServerContext" if many else "ForkContext")
    assert callable(collective)
