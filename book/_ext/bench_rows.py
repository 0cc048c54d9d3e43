"""The rows of the benchmark: ours against a peer, both measured here and now.

A chapter that adds one writes a function of the number of rounds under `@row`, most often one `interleaved` call.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench import ROOT, Pairs, interleaved, row, seconds

PYTHON = sys.executable
STAGE = os.environ.get("BENCH_STAGE", "").split()  # options of the execution stage, from noxfile.py
NOX = os.environ.get("BENCH_NOX", PYTHON)  # the Python that runs nox
LLMBOOK = str(Path(PYTHON).with_name("llmbook"))


def run(*command: str | Path, folder: Path = ROOT) -> Callable[[], None]:
    """An action that runs a command, quietly; its failure stops the benchmark and is shown."""

    def action() -> None:
        done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")

    return action


def execute(cache: Path, *, book: Path, stage: list[str]) -> Callable[[], None]:
    """An action that executes the pages of a book."""
    jobs = ("--jobs", str(os.cpu_count() or 2))
    return run(PYTHON, "-m", "execution", book, "--cache", cache, *jobs, *stage)


@row(
    "whole book, cold",
    ours="execute every cell and write the HTML, from nothing",
    peer="the floor: CPU seconds of the cells over the cores, and Sphinx, which executes nothing",
    at_most=1.15,
    seconds_more=5.0,
    once=True,
)
def whole_book(rounds: int) -> Pairs:
    """The stage's time beside what its cells cost at least."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        cache = Path(folder, "cache")
        stage = seconds(execute(cache, book=ROOT / "book", stage=STAGE))
        paths = ["-d", f"{folder}/trees", "-D", f"nb_execution_cache_path={cache}"]
        sphinx = seconds(run(PYTHON, "-m", "sphinx", "-q", *paths, "book", f"{folder}/html"))
        summary = json.loads((cache / "summary.json").read_bytes())
    return [stage + sphinx], [summary["cpu_seconds"] / summary["jobs"] + sphinx]


@row(
    "sample of 24, cold",
    ours="the stage and Sphinx, 24 pages of four cells",
    peer="MyST-NB alone, one kernel after the other",
    at_most=0.15,
)
def sample_cold(rounds: int) -> Pairs:
    """Short pages, where starting kernels costs most."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        run(PYTHON, ROOT / "book/_ext/execution/tests/sample_book.py", folder)()
        stage = ["--preload", "torch,matplotlib.pyplot"]

        def built(kind: str) -> None:
            for made in ("html", "trees", *(["cache"] if kind == "cached" else [])):
                shutil.rmtree(folder / made, ignore_errors=True)
            if kind == "cached":
                execute(folder / "cache", book=folder / "book", stage=stage)()
            paths = ["-c", folder / kind, "-d", folder / "trees", folder / "book", folder / "html"]
            run(PYTHON, "-m", "sphinx", "-q", *paths)()

        return interleaved(rounds, lambda: built("cached"), lambda: built("plain"))


@row(
    "nothing to do",
    ours="nox -s build after a build",
    peer="Sphinx starts and reads its environment",
    at_most=1.3,
)
def nothing_to_do(rounds: int) -> Pairs:
    """Against what Sphinx needs before it could do anything."""
    start = (
        "from sphinx.application import Sphinx; "
        "Sphinx('book', 'book', 'build/html', 'build/doctrees', 'html', status=None)"
    )
    build = run(NOX, "-m", "nox", "-s", "build")
    build()
    return interleaved(rounds, build, run(PYTHON, "-c", start))


@row("command, bare", ours="llmbook params llama-7b", peer='python -c "pass"')
def command_bare(rounds: int) -> Pairs:
    """What a user of the command waits for, beside Python itself."""
    return interleaved(rounds, run(LLMBOOK, "params", "llama-7b"), run(PYTHON, "-c", "pass"))


@row("command, shell", ours="llmbook params llama-7b", peer='python -c "import typer, rich"')
def command_shell(rounds: int) -> Pairs:
    """The same beside the libraries that a command of this kind needs."""
    imports = run(PYTHON, "-c", "import typer, rich")
    return interleaved(rounds, run(LLMBOOK, "params", "llama-7b"), imports)


@cache
def corpus() -> list[str]:
    """A megabyte of the documentation in the frozen corpus."""
    from llmbook.corpus import documents

    texts = [document.text for document in documents() if document.kind == "documentation"]
    return list("".join(texts)[:1_000_000].splitlines(keepends=True))


def tokenizers_trained(vocab_size: int) -> Any:
    """Hugging Face's `tokenizers`, trained on the same text, on one thread as ours."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    peer.train_from_iterator(corpus(), trainer)
    return peer


@row(
    "tokenizer, training",
    ours="train_byte_pair, a million characters, 2,048 tokens",
    peer="tokenizers (Rust), one thread, the same text",
)
def tokenizer_training(rounds: int) -> Pairs:
    """Merges learned in Python and in Rust."""
    from llmbook.foundations.tokenization import train_byte_pair

    corpus()
    ours = partial(train_byte_pair, corpus(), vocab_size=2048)
    return interleaved(rounds, ours, lambda: tokenizers_trained(2048))


@row(
    "tokenizer, encoding",
    ours="encode line by line, a million characters, 2,048 tokens",
    peer="tokenizers (Rust), one thread, the same text",
)
def tokenizer_encoding(rounds: int) -> Pairs:
    """A text turned into ids; ours starts each round without the pieces it remembers."""
    from llmbook.foundations.tokenization import train_byte_pair

    ours, peer = train_byte_pair(corpus(), vocab_size=2048), tokenizers_trained(2048)

    def encoded() -> list[list[int]]:
        fresh = replace(ours)  # without the pieces it remembers
        return [fresh.encode(line) for line in corpus()]

    cut = [[len(ids) for ids in encoded()], [len(one.ids) for one in peer.encode_batch(corpus())]]
    if cut[0] != cut[1]:
        raise SystemExit("ours and tokenizers cut the text differently: nothing to compare")
    return interleaved(rounds, encoded, lambda: peer.encode_batch(corpus()))
