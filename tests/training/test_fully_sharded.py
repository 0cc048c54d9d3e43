"""FSDP2 does the step of ZeRO by hand, and holds and sends what its padding of rows says."""

import pytest
import torch

from llmbook.costs.collectives import all_gather_bytes, reduce_scatter_bytes
from llmbook.costs.zero import row_shard_numel
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.processes import run
from llmbook.training.fully_sharded import FullySharded
from llmbook.training.zero import AdamW, ParametersSharded, train
from llmbook.zoo.catalogue import config as card

CONFIG = card("llama-7b").but(
    vocab_size=19, hidden_size=10, embedding_size=10, num_layers=2, num_heads=5, num_kv_heads=1,
    head_dim=2, intermediate_size=23, max_seq_len=9,
)  # fmt: skip
SETTINGS = AdamW(learning_rate=0.01, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.1)
NUMBER = 8  # bytes of a float64


def shapes(module):
    return [tuple(parameter.shape) for parameter in module.parameters()]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_fsdp2_and_stage_3_by_hand_are_one_step(num_ranks):
    model = initialise(
        Decoder(CONFIG), generator=torch.Generator().manual_seed(1), std=0.3
    ).double()
    tokens = torch.randint(0, 19, (12, 7), generator=torch.Generator().manual_seed(2))
    both = [
        run(
            train, model, tokens, trainer=trainer, modules=["layers.0", "layers.1"], num_steps=2,
            settings=SETTINGS, num_ranks=num_ranks,
        )
        for trainer in (ParametersSharded, FullySharded)
    ]  # fmt: skip
    for by_hand, by_torch in zip(*both, strict=True):
        for part in ("gradients", "parameters"):
            ours, theirs = getattr(by_hand, part), getattr(by_torch, part)
            assert ours.keys() == theirs.keys()
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-12)
        assert by_hand.losses == pytest.approx(by_torch.losses, abs=1e-12)

    in_layers = [row_shard_numel(shapes(layer), num_ranks=num_ranks) for layer in model.layers]
    rest = row_shard_numel(shapes(model), num_ranks=num_ranks) - sum(in_layers)
    first = both[1][0]
    shard = NUMBER * (sum(in_layers) + rest)
    counters = 4 * len(shapes(model))  # Adam counts the steps of each tensor in a float32
    assert first.held_bytes == {
        "parameters": shard, "gradients": shard, "optimizer": 2 * shard + counters,
    }  # fmt: skip
    assert 0 <= sum(first.held_bytes.values()) - first.live_bytes <= counters

    def passes(numel, gathers):
        gather = all_gather_bytes(numel * NUMBER, num_ranks=num_ranks)
        scatter = reduce_scatter_bytes(numel * num_ranks * NUMBER, num_ranks=num_ranks)
        return gathers * gather + scatter

    expected = sum(passes(numel, 2) for numel in in_layers) + passes(rest, 1)
    assert {result.sent_bytes for result in both[1]} == {expected if num_ranks > 1 else 0}
