"""A rehearsal against real ranks, and all layers of a published model against two and four."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from llmbook.costs.collectives import ring_bytes
from llmbook.costs.parameters import parameter_count
from llmbook.costs.zero import row_shard_numel
from llmbook.foundations.decoder import Decoder
from llmbook.processes import Traffic, run
from llmbook.rehearsal import extended, rehearse
from llmbook.training.fully_sharded import forward_and_backward, sharded_decoder
from llmbook.zoo.catalogue import config as card

TINY = card("llama-7b").but(
    vocab_size=19, hidden_size=10, embedding_size=10, num_layers=2, num_heads=5, num_kv_heads=1,
    head_dim=2, intermediate_size=23, max_seq_len=9,
)  # fmt: skip
STEP = partial(forward_and_backward, batch_size=1, seq_len=8)


def played(config):
    """The same step on real ranks, with real numbers."""
    model = sharded_decoder(config)
    with Traffic() as traffic:
        STEP(model)
    return traffic.calls


def sent(calls):
    return ring_bytes((call.kind, call.given_bytes, call.num_ranks) for call in calls)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_rehearsal_calls_what_real_ranks_call(num_ranks):
    real = run(played, TINY, num_ranks=num_ranks)
    for rank in range(num_ranks):
        rehearsed = rehearse(partial(sharded_decoder, TINY), STEP, num_ranks=num_ranks, rank=rank)
        assert rehearsed.collectives == real[rank]
        assert rehearsed.num_parameters == parameter_count(TINY).total


def test_all_80_layers_of_llama_65b_on_2048_ranks_follow_from_two_and_four():
    """Counted, extended linearly and derived from the shapes: three ways to one number."""
    R, config = 2048, card("llama-65b")
    count = {
        num_layers: rehearse(
            partial(sharded_decoder, config.but(num_layers=num_layers)), STEP, num_ranks=R
        )
        for num_layers in (2, 4, config.num_layers)
    }
    assert count[80].num_parameters == parameter_count(config).total
    ours = extended((sent(count[2].collectives), sent(count[4].collectives)), (2, 4), num_layers=80)
    assert ours == sent(count[80].collectives)

    with torch.device("meta"):
        model = Decoder(config.but(num_layers=1))
    shapes = [tuple(p.shape) for p in model.parameters()]
    in_layer = row_shard_numel([tuple(p.shape) for p in model.layers[0].parameters()], num_ranks=R)
    rest = row_shard_numel(shapes, num_ranks=R) - in_layer
    assert ours == 2 * (R - 1) * (3 * 80 * in_layer + 2 * rest)


def test_nothing_is_left_in_this_process():
    rehearse(partial(sharded_decoder, TINY), STEP, num_ranks=5)
    assert not dist.is_initialized()


def test_a_rank_outside_the_group_is_refused():
    with pytest.raises(ValueError, match="rank 3 is not one of 3"):
        rehearse(partial(sharded_decoder, TINY), STEP, num_ranks=3, rank=3)


def rehearse_within():
    try:
        rehearse(partial(sharded_decoder, TINY), STEP, num_ranks=3)
    except RuntimeError as error:
        return str(error)


def test_a_rank_of_a_real_group_does_not_rehearse():
    assert "without a process group" in run(rehearse_within, num_ranks=1)[0]


def test_an_extension_needs_two_different_rehearsals():
    with pytest.raises(ValueError, match="give no whole count"):
        extended((3, 4), (2, 2), num_layers=9)
    with pytest.raises(ValueError, match="give no whole count"):
        extended((3, 6), (2, 4), num_layers=9)
