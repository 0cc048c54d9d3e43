"""The counter of live bytes against sizes that are known beforehand."""

import torch
from torch import nn

from llmbook.training.memory import LiveBytes, storage_bytes

MIB = 2**20


def test_what_dies_is_forgotten_and_the_peak_stays():
    with LiveBytes() as live:
        kept = torch.zeros(MIB, dtype=torch.uint8)
        passing = torch.zeros(3 * MIB, dtype=torch.uint8)
        assert live.now == 4 * MIB
        del passing
        assert live.now == MIB
        other = torch.zeros(2 * MIB, dtype=torch.uint8)
    assert (live.now, live.peak) == (3 * MIB, 4 * MIB)
    assert storage_bytes([kept, other, kept[:7]]) == 3 * MIB


def test_views_share_and_older_tensors_do_not_count():
    before = torch.zeros(1000)
    with LiveBytes() as live:
        views = [before.view(10, 100), before[5:], before.add_(1)]
        assert live.now == 0
        views.append(before.clone()[::2])
    assert live.now == 4000


def test_a_storage_counts_at_its_size_of_the_moment():
    with LiveBytes() as live:
        emptied = torch.zeros(1000)
        emptied.untyped_storage().resize_(0)
        assert live.now == 0
        emptied.untyped_storage().resize_(4000)
    assert live.now == 4000


def test_a_backward_pass_leaves_the_gradients_alone():
    """Activations live between the passes: here the input of the second layer, 64 x 32 numbers."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    inputs = torch.randn(64, 16)
    with LiveBytes() as live:
        loss = model(inputs).sum()
        assert live.now == 4 * (64 * 32 + 1)
        loss.backward()
        del loss
    gradients = sum(p.numel() for p in model.parameters())
    assert live.now == 4 * gradients
    assert live.peak >= 4 * (64 * 32 + gradients)
