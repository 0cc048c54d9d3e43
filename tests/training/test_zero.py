"""Four stages on real ranks against one process, and what they hold and send against formulas."""

import random
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from formula import expressions
from torch import nn

from llmbook.config import ModelConfig
from llmbook.costs.zero import (
    FP32_ADAM,
    FP64_ADAM,
    MIXED_ADAM,
    sent_bytes_per_rank,
    state_bytes_per_rank,
)
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.language_modelling import next_token_loss
from llmbook.processes import RankFailed, run
from llmbook.training.zero import (
    AdamW,
    DataParallel,
    GradientsSharded,
    OptimizerSharded,
    ParametersSharded,
    torch_adamw,
    train,
)
from llmbook.zoo.catalogue import config as card

PAGE = Path(__file__).parents[2] / "book" / "training" / "zero.md"
STAGES = {0: DataParallel, 1: OptimizerSharded, 2: GradientsSharded, 3: ParametersSharded}
# Widths that 2, 3 and 4 do not divide.
UNTIED = card("llama-7b").but(
    vocab_size=19, hidden_size=10, embedding_size=10, num_layers=3, num_heads=5, num_kv_heads=1,
    head_dim=2, intermediate_size=23, max_seq_len=9,
)  # fmt: skip
TIED = ModelConfig(
    vocab_size=19, hidden_size=9, num_layers=2, num_heads=3, intermediate_size=13, max_seq_len=9
)
SETTINGS = AdamW(learning_rate=0.01, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.1)


def decoder(config, dtype=torch.float64):
    return initialise(Decoder(config), generator=torch.Generator().manual_seed(1), std=0.3).to(
        dtype
    )


def batch():
    return torch.randint(0, 19, (12, 7), generator=torch.Generator().manual_seed(2))


def layers(model):
    return [f"layers.{index}" for index in range(len(model.layers))]


def unit_sizes(model):
    """Parameters of each layer, and of what stands in none."""
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
    return sizes, sum(p.numel() for p in model.parameters()) - sum(sizes)


@cache
def alone(config):
    """Three steps in one process, by PyTorch alone."""
    model = decoder(config)
    optimizer, losses = torch_adamw(model.parameters(), SETTINGS), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = next_token_loss(model, batch())
        loss.backward()
        losses.append(loss.item())
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    return losses, gradients, {name: p.detach().clone() for name, p in model.named_parameters()}


@cache
def together(config, stage, num_ranks, dtype=torch.float64):
    """Three steps on ranks, which several tests look at."""
    model = decoder(config, dtype)
    keywords = {"trainer": STAGES[stage], "modules": layers(model), "settings": SETTINGS}
    return run(train, model, batch(), num_steps=3, num_ranks=num_ranks, **keywords)


def difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied"])
def test_three_steps_equal_one_process(config, stage, num_ranks):
    losses, gradients, parameters = alone(config)
    for found in (results := together(config, stage, num_ranks)):
        assert difference(found.gradients, gradients) < 1e-12
        assert difference(found.parameters, parameters) < 1e-12
    means = [sum(step) / num_ranks for step in zip(*(r.losses for r in results), strict=True)]
    assert means == pytest.approx(losses, abs=1e-12)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("num_ranks", "dtype", "each"),
    [
        (1, torch.float64, FP64_ADAM),
        (2, torch.float64, FP64_ADAM),
        (3, torch.float64, FP64_ADAM),
        (4, torch.float64, FP64_ADAM),
        (2, torch.float32, FP32_ADAM),
        (3, torch.bfloat16, MIXED_ADAM),
    ],
)
def test_every_rank_holds_and_sends_what_the_formulas_say(stage, num_ranks, dtype, each):
    of_layers, rest = unit_sizes(decoder(UNTIED))
    sizes = {"num_ranks": num_ranks, "stage": stage, "each": each}
    state = sum(state_bytes_per_rank(size, **sizes) for size in [*of_layers, rest])
    # What stands in no layer stays gathered between the passes, and is gathered once as in stage 2.
    sent = sum(sent_bytes_per_rank(size, **sizes) for size in of_layers)
    sent += sent_bytes_per_rank(rest, num_ranks=num_ranks, stage=min(stage, 2), each=each)
    for found in together(UNTIED, stage, num_ranks, dtype):
        assert sum(found.held_bytes.values()) == state
        assert found.live_bytes == state, "counted apart, by operators and not by the trainer"
        assert found.sent_bytes == sent


def test_the_parts_that_a_stage_shards_shrink_and_the_others_stay():
    R, order = 4, ["optimizer", "gradients", "parameters"]
    held = [together(UNTIED, stage, R)[0].held_bytes for stage in STAGES]
    for stage in (1, 2, 3):
        for part in order:
            before, now = held[stage - 1][part], held[stage][part]
            assert now == (before / R if part == order[stage - 1] else before)


def test_collectives_come_in_the_order_of_the_paper():
    """Section 7: one all-reduce; or reduce-scatter, then all-gather; or gather, gather, scatter."""
    units = UNTIED.num_layers + 1
    kinds = [[call.kind for call in together(UNTIED, stage, 2)[0].collectives] for stage in STAGES]
    assert kinds[0] == ["all_reduce"] * units
    assert kinds[1] == kinds[2] == ["reduce_scatter"] * units + ["all_gather"] * units
    first, second = kinds[3][:units], kinds[3][units:]
    assert first == ["all_gather"] * units
    assert second == ["all_gather", "reduce_scatter"] * (units - 1) + ["reduce_scatter"]


def test_no_stage_holds_for_a_moment_what_it_shards():
    """With many layers the peaks fall from stage to stage, by what each stage shards."""
    model = decoder(UNTIED.but(num_layers=8))
    peaks = [
        run(
            train,
            model,
            batch()[:4, :3],
            trainer=trainer,
            modules=layers(model),
            num_ranks=4,
        )[0].peak_bytes
        for trainer in STAGES.values()
    ]
    numbers = 8 * sum(
        p.numel() for p in model.parameters()
    )  # bytes of one number for each parameter
    saved = [(before - after) / numbers for before, after in pairwise(peaks)]
    assert saved[0] == pytest.approx(2 * 3 / 4, abs=0.05)  # two moments of which a quarter stays
    assert saved[1] == pytest.approx(3 / 4, abs=0.25)  # gradients, but for one unit
    assert saved[2] == pytest.approx(3 / 4, abs=0.25)  # parameters, but for one unit


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is Linux's")
@pytest.mark.parametrize("stage", STAGES)
def test_the_wire_carries_the_formula_and_each_reduce_scatter_twice(stage):
    """gloo sends for a reduce-scatter what it sends for an all-reduce."""
    model = decoder(UNTIED.but(hidden_size=80, head_dim=16, intermediate_size=200))
    results = run(train, model, batch(), trainer=STAGES[stage], modules=layers(model), num_ranks=3)
    for found in results:
        scattered = sum(c.given_bytes for c in found.collectives if c.kind == "reduce_scatter")
        expected = found.sent_bytes + scattered * 2 // 3
        assert expected <= found.wire_bytes < 1.02 * expected


def test_a_batch_that_ranks_do_not_divide_is_refused():
    model = decoder(UNTIED)
    with pytest.raises(RankFailed, match="batch_size 5 is not a multiple of num_ranks 2"):
        run(train, model, batch()[:5], trainer=DataParallel, modules=layers(model), num_ranks=2)


def test_units_that_overlap_are_refused():
    names = ["layers.0", "layers.0.attention"]
    keywords = {"trainer": ParametersSharded, "modules": names, "num_ranks": 2}
    with pytest.raises(RankFailed, match="Attention shares a parameter with a module before it"):
        run(train, decoder(UNTIED), batch(), **keywords)


def test_a_unit_of_two_dtypes_is_refused():
    model = decoder(UNTIED)
    model.layers[1].mlp.float()
    keywords = {"trainer": OptimizerSharded, "modules": ["layers.1"], "num_ranks": 2}
    with pytest.raises(RankFailed, match="of Block: a flat vector has one"):
        run(train, model, batch(), **keywords)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_parameter_without_a_gradient_is_named(stage):
    model = decoder(UNTIED)
    model.layers[0].forgotten = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    keywords = {"trainer": STAGES[stage], "modules": layers(model), "num_ranks": 2}
    with pytest.raises(RankFailed, match="1 parameters of Block got no gradient"):
        run(train, model, batch(), **keywords)


@pytest.mark.parametrize("seed", range(20))
def test_the_formulas_of_the_page_are_the_functions(seed):
    """The paper's equations leave out the padding, so the sizes are multiples of the ranks."""
    R = random.Random(seed).randrange(1, 2000)
    P = R * random.Random(-seed).randrange(1, 10**7)
    page = {name: eval(text, {"P": P, "R": R}) for name, text in expressions(PAGE).items()}
    for stage, label in ((1, "eq-zero-stage1"), (2, "eq-zero-stage2"), (3, "eq-zero-stage3")):
        assert page[label] == state_bytes_per_rank(P, num_ranks=R, stage=stage)
    for stage in (0, 1, 2):
        assert page["eq-zero-sent"] == sent_bytes_per_rank(P, num_ranks=R, stage=stage)
    assert page["eq-zero-sent3"] == sent_bytes_per_rank(P, num_ranks=R, stage=3)
