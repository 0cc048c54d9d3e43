"""Small mixtures trained with and without balance, and dense models of the same cost: stored runs.

Page: foundations/mixture_of_experts. `python -m llmbook.foundations.mixture_of_experts_runs` trains
every method on every seed and writes mixture_of_experts_runs.json beside this file.
Left out: schedules of alpha or of the bias's rate, and any search for the best of either.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import date
from importlib.resources import files
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.language_modelling import (
    adamw,
    batches,
    fit,
    held_out_loss,
    next_token_loss,
    split_documents,
    warmup_cosine,
)
from llmbook.foundations.mixture_of_experts import (
    MixtureOfExperts,
    effective_experts,
    expert_capacity,
    load,
    load_balancing_loss,
    recorded_scores,
    update_bias,
    within_capacity,
)
from llmbook.foundations.weights import processor

MIXTURE = ModelConfig(
    name="mixture", vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, max_seq_len=128,
    positions="rotary", norm="rms_norm", activation="silu", gated=True, num_experts=8,
    experts_per_token=2, expert_intermediate_size=64, intermediate_size=128,
    attention_bias=False, attention_output_bias=False, mlp_bias=False,
)  # fmt: skip
DENSE = MIXTURE.but(name="dense", num_experts=0, experts_per_token=0, expert_intermediate_size=0)
METHODS = {
    "nothing": MIXTURE,
    "loss": MIXTURE,
    "bias": MIXTURE.but(router_bias=True),
    "dense": DENSE,  # F as wide as the two experts of a token
    "wide": DENSE.but(name="wide", intermediate_size=512),  # as all eight
}
ALPHA = 0.01  # fedus2022switch, section 2.2
BIAS_RATE = 0.001  # deepseekai2024deepseekv3, section 4.2
BATCH = {"batch_size": 16, "seq_len": 64}
NUM_STEPS, EVERY, PEAK, CAPACITY_FACTOR = 400, 10, 3e-3, 1.25


def byte_stream(*, held_out: bool) -> Int[Tensor, " n"]:
    """The corpus as bytes, a zero before each document: no tokenizer, and a small head."""
    texts = split_documents()[held_out]
    joined = bytearray(b"".join(b"\0" + doc.text.encode() for doc in texts))
    return torch.frombuffer(joined, dtype=torch.uint8).long()


def mixtures(model: nn.Module) -> list[MixtureOfExperts]:
    """The layers with a router, first to last."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def choices(
    model: nn.Module, scores: list[Float[Tensor, "tokens E"]]
) -> list[Int[Tensor, "tokens k"]]:
    """The experts that each layer's recorded scores led to."""
    return [
        layer.route(s, bias=layer.router.bias)[1]
        for layer, s in zip(mixtures(model), scores, strict=True)
    ]


def order_of_batches(seed: int) -> torch.Generator:
    """The generator of a seed's batches, the same for every method, however many weights it has.

    It stands where drawing the mixture's weights leaves it.
    """
    generator = torch.Generator().manual_seed(seed)
    initialise(Decoder(MIXTURE), generator=generator)
    return generator


def train(method: str, *, seed: int, num_steps: int = NUM_STEPS) -> tuple[Decoder, dict[str, Any]]:
    """One run: the model, its losses, and the effective number of experts (mean over layers)."""
    config = METHODS[method]
    model = initialise(Decoder(config), generator=torch.Generator().manual_seed(seed))
    experts_used: list[float] = []

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        with recorded_scores(model) as scores:
            value = next_token_loss(model, tokens)
        chosen_by_layer = choices(model, scores)
        for layer, s, chosen in zip(mixtures(model), scores, chosen_by_layer, strict=True):
            experts_used.append(effective_experts(load(chosen, num_experts=config.num_experts)))
            if method == "loss":
                value = value + ALPHA * load_balancing_loss(s, chosen)
            if method == "bias":
                update_bias(layer.router.bias, chosen, rate=BIAS_RATE)
        return value

    data = batches(byte_stream(held_out=False), generator=order_of_batches(seed), **BATCH)
    rates = warmup_cosine(PEAK, num_steps=NUM_STEPS, num_warmup_steps=50)[:num_steps]
    losses = fit(model, data, optimizer=adamw(model), schedule=rates, loss=loss)
    per_step = torch.tensor(experts_used).view(len(losses), -1).mean(1).tolist()
    return model, {"losses": losses, "effective_experts": per_step if experts_used else []}


@torch.no_grad()
def judge(model: Decoder, *, num_bytes: int = 40_000) -> dict[str, Any]:
    """Held-out loss; for a mixture also each layer's load, and how many choices find no place."""
    model.eval()
    tokens = byte_stream(held_out=True)[:num_bytes]
    found: dict[str, Any] = {
        "held_out": round(held_out_loss(model, tokens, seq_len=BATCH["seq_len"]), 4)
    }
    E, k = model.config.num_experts, model.config.experts_per_token
    if not E:
        return found
    stream = batches(tokens, generator=torch.Generator().manual_seed(0), **BATCH)
    loads, dropped = [], []
    for batch in islice(stream, num_bytes // 2500):
        with recorded_scores(model) as scores:
            model(batch[:, :-1])
        made = choices(model, scores)
        room = expert_capacity(
            len(made[0]), num_experts=E, experts_per_token=k, capacity_factor=CAPACITY_FACTOR
        )
        loads.append(torch.stack([load(c, num_experts=E) for c in made]))
        kept = [within_capacity(c, num_experts=E, capacity=room).double().mean() for c in made]
        dropped.append(1 - fmean(x.item() for x in kept))
    shares = [[round(x, 4) for x in layer] for layer in torch.stack(loads).mean(0).tolist()]
    return found | {"load": shares, "dropped": round(fmean(dropped), 4)}


def stored() -> dict[str, Any]:
    """The runs as they were written, with the command that made them."""
    file = files("llmbook.foundations") / "mixture_of_experts_runs.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf8"))
    return found


def main(num_seeds: int = 4) -> None:
    """Train everything, and write what came out beside this file."""
    torch.set_num_threads(1)
    began, runs = time.process_time(), []
    for seed in range(num_seeds):
        for method in METHODS:
            model, curve = train(method, seed=seed)
            first = [round(loss, 4) for loss in curve["losses"][:20]]
            used = [round(x, 3) for x in curve["effective_experts"][::EVERY]]
            runs.append({"method": method, "seed": seed, "first_losses": first,
                         "effective_experts": used, **judge(model)})  # fmt: skip
            print(
                method, seed, runs[-1]["held_out"], used[-1:], runs[-1].get("dropped"), flush=True
            )
            done = {
                "command": "python -m llmbook.foundations.mixture_of_experts_runs",
                "date": date.today().isoformat(),
                "processor": processor(),
                "torch": torch.__version__,
                "cpu_seconds": round(time.process_time() - began),
                "runs": runs,
            }
            Path(__file__).with_suffix(".json").write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
