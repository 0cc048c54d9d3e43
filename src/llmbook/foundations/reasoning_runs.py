"""The small models of the page on reasoning: `python -m llmbook.foundations.reasoning_runs`.

Page: foundations/reasoning. A run that was stopped goes on behind the last finished one; no run
depends on another, only on its seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from llmbook.costs.flops import training_flops
from llmbook.foundations.decoder import Decoder
from llmbook.foundations.language_modelling import sampled
from llmbook.foundations.reasoning import (
    accuracy,
    answers,
    filled,
    parity_decoder,
    right_answers,
    right_steps,
    self_taught_round,
    split_bit_strings,
    told,
    train_on,
    written,
)
from llmbook.foundations.weights import processor

FILE = Path(__file__).parent / "reasoning_runs.json"
NUM_BITS = 16
NUM_HELD_OUT = 2048
NUM_STEPS = 400
BATCH_SIZE = 64
SEEDS = range(6)  # the page shows the first five, the tests use the last as well
HALF_TRAINED = 0.05  # nats a token of the chain
NUM_QUESTIONS, NUM_SAMPLES = 500, 40  # sampled from the half-trained model
ROUNDS = 3
NUM_ASKED = 2048  # questions of a round, each new


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one model is taught, for how many steps, and how many tokens it writes."""

    taught: Callable[[Int[Tensor, "n bits"]], tuple[Tensor, Tensor]]
    chain_len: int
    same_flops: bool = False  # as many steps as the FLOPs of the written chain pay for


ARMS = {
    "steps": Arm(taught=written, chain_len=16),
    "every second": Arm(taught=partial(written, every=2), chain_len=8, same_flops=True),
    "answer": Arm(taught=partial(written, every=16), chain_len=1),
    "answer, same FLOPs": Arm(taught=partial(written, every=16), chain_len=1, same_flops=True),
    "filler": Arm(taught=filled, chain_len=16),
    "told": Arm(taught=told, chain_len=1, same_flops=True),
}
KEPT = {
    "all": lambda chains, bits: torch.ones(len(chains), dtype=torch.bool),
    "right answers": right_answers,
    "right steps": right_steps,
}


def num_steps(arm: Arm) -> int:
    """Steps of an arm: as many as the chain's, or as many as cost the same FLOPs."""
    if not arm.same_flops:
        return NUM_STEPS

    def step(chain_len: int) -> int:
        config = parity_decoder(NUM_BITS, seed=0).config
        return training_flops(config, seq_len=NUM_BITS + chain_len, batch_size=BATCH_SIZE)

    return NUM_STEPS * step(NUM_BITS) // step(arm.chain_len)


@torch.no_grad()
def held_out_accuracy(model: Decoder, arm: Arm, bits: Int[Tensor, "B n"]) -> float:
    """Greedy accuracy; fillers are given, not written."""
    if arm.taught is filled:
        logits = model(filled(bits)[0][:, :-1])
        return accuracy(logits[:, -1:].argmax(-1), bits)
    return accuracy(answers(model, bits, num_tokens=arm.chain_len), bits)


def trained(
    name: str, *, seed: int, stop: Callable[[Sequence[float]], bool] = lambda losses: False
) -> tuple[Decoder, list[float]]:
    """A model of an arm and its losses; `stop` ends it early."""
    arm = ARMS[name]
    model = parity_decoder(NUM_BITS, seed=seed)
    tokens, labels = arm.taught(split_bit_strings(NUM_BITS, num_held_out=NUM_HELD_OUT)[0])
    losses = train_on(
        model, tokens, labels, num_steps=num_steps(arm), seed=seed, batch_size=BATCH_SIZE, stop=stop
    )
    return model, losses


def half_trained(seed: int) -> tuple[Decoder, list[float]]:
    """The chain's model, stopped where a token of a batch's chains costs `HALF_TRAINED` at most."""
    return trained(
        "steps", seed=seed, stop=lambda losses: bool(losses) and losses[-1] <= HALF_TRAINED
    )


def sampled_chains(model: Decoder, bits: Int[Tensor, "B n"], *, seed: int) -> Int[Tensor, "B n"]:
    """One chain for each row, at temperature 1."""
    luck = torch.Generator().manual_seed(seed)
    choose = partial(sampled, temperature=1.0, generator=luck)
    return answers(model, bits, num_tokens=NUM_BITS, choose=choose)


def votes(seed: int) -> dict[str, Any]:
    """How many of the samples of each question were right, in answer and in every step."""
    model, losses = half_trained(seed)
    bits = split_bit_strings(NUM_BITS, num_held_out=NUM_HELD_OUT)[1][:NUM_QUESTIONS]
    repeated = bits.repeat_interleave(NUM_SAMPLES, dim=0)
    chains = sampled_chains(model, repeated, seed=seed)
    right, sound = right_answers(chains, repeated), right_steps(chains, repeated)
    return {
        "seed": seed, "num_steps": len(losses),
        "right": right.view(-1, NUM_SAMPLES).sum(1).tolist(),
        "sound": sound.view(-1, NUM_SAMPLES).sum(1).tolist(),
        "greedy": held_out_accuracy(model, ARMS["steps"], bits),
    }  # fmt: skip


def self_taught(reward: str, *, seed: int, num_rounds: int = ROUNDS) -> dict[str, Any]:
    """Rounds of training on kept chains: accuracy before and after each, and what was kept."""
    model, _ = half_trained(seed)
    training, held_out = split_bit_strings(NUM_BITS, num_held_out=NUM_HELD_OUT)
    found: dict[str, Any] = {
        "reward": reward, "seed": seed, "kept": [], "accuracy": [], "sound_of_right": [],
    }  # fmt: skip
    for turn in range(num_rounds + 1):
        chains = sampled_chains(model, held_out, seed=turn)
        right, sound = right_answers(chains, held_out), right_steps(chains, held_out)
        found["accuracy"].append(round(right.double().mean().item(), 4))
        found["sound_of_right"].append(round((sound.sum() / right.sum()).item(), 4))
        if turn < num_rounds:
            asked = training[turn * NUM_ASKED : (turn + 1) * NUM_ASKED]
            kept = self_taught_round(model, asked, keep=KEPT[reward], num_steps=60, seed=turn)
            found["kept"].append(kept)
    return found


def run(name: str, seed: int) -> dict[str, Any]:
    """One arm and seed."""
    model, losses = trained(name, seed=seed)
    held_out = split_bit_strings(NUM_BITS, num_held_out=NUM_HELD_OUT)[1]
    return {
        "arm": name, "seed": seed, "num_steps": len(losses), "chain_len": ARMS[name].chain_len,
        "first_losses": [round(loss, 4) for loss in losses[:10]],
        "last_loss": round(sum(losses[-20:]) / 20, 4),
        "accuracy": round(held_out_accuracy(model, ARMS[name], held_out), 4),
    }  # fmt: skip


def main() -> None:
    """Make what is missing, and write the file after each run."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    data: dict[str, Any] = json.loads(FILE.read_text("utf8")) if FILE.exists() else {
        "command": "python -m llmbook.foundations.reasoning_runs",
        "date": date.today().isoformat(), "processor": processor(), "torch": torch.__version__,
        "cpu_seconds": 0.0, "arms": [], "votes": [], "self_taught": [],
    }  # fmt: skip

    def add(kind: str, make: Callable[[], dict[str, Any]], **key: Any) -> None:
        if any(key.items() <= found.items() for found in data[kind]):
            return
        start = time.process_time()
        data[kind].append(make())
        data["cpu_seconds"] = round(data["cpu_seconds"] + time.process_time() - start, 1)
        FILE.write_text(json.dumps(data).replace('{"arm"', '\n{"arm"') + "\n", "utf8")
        print(kind, key, data[kind][-1].get("accuracy", ""), flush=True)

    for seed in SEEDS:
        add("votes", partial(votes, seed), seed=seed)
        for name in ARMS:
            add("arms", partial(run, name, seed), arm=name, seed=seed)
        for reward in KEPT:
            add("self_taught", partial(self_taught, reward, seed=seed), reward=reward, seed=seed)


if __name__ == "__main__":
    main()
