"""The task against plain Python, the signal against its definition, and training."""

import math
from itertools import product

import pytest
import torch

from llmbook.foundations import reasoning
from llmbook.foundations.language_modelling import IGNORED
from llmbook.foundations.reasoning import (
    EQUALS,
    FILLER,
    answers,
    chain,
    filled,
    parity_decoder,
    parity_signal,
    right_answers,
    right_steps,
    self_taught_round,
    split_bit_strings,
    told,
    train_on,
    written,
)

# the task


@pytest.fixture
def bits():
    return torch.randint(2, (50, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("every", [1, 2, 4, 16])
def test_a_chain_is_the_parity_so_far(bits, every):
    for row, steps in zip(bits.tolist(), chain(bits, every=every).tolist(), strict=True):
        parity, found = 0, []
        for place, bit in enumerate(row, start=1):
            parity ^= bit
            if place % every == 0:
                found.append(parity)
        assert steps == found


def test_the_question_is_read_and_the_chain_is_learned(bits):
    tokens, labels = written(bits)
    assert torch.equal(tokens[:, :16], bits)
    assert (tokens[:, 16] == EQUALS).all()
    assert (labels[:, :17] == IGNORED).all()
    assert torch.equal(labels[:, 17:], tokens[:, 17:])


def test_fillers_take_the_place_of_steps_and_are_not_learned(bits):
    tokens, labels = filled(bits)
    full = written(bits)[0]
    assert tokens.shape == full.shape
    assert (tokens[:, 17:-1] == FILLER).all()
    assert torch.equal(tokens[:, -1], full[:, -1])
    assert ((labels != IGNORED).sum(1) == 1).all()
    assert (labels[:, -1] != IGNORED).all()


def test_who_is_told_sees_no_step_but_learns_each(bits):
    """The label behind the i-th bit is the parity of i bits; among the tokens it is the next bit."""
    tokens, labels = told(bits)
    assert torch.equal(tokens, written(bits, every=16)[0])
    assert torch.equal(labels[:, 1:17], chain(bits))


def test_held_out_strings_are_not_trained_on():
    training, held_out = split_bit_strings(10, num_held_out=100)
    every = {tuple(row) for row in torch.cat([training, held_out]).tolist()}
    assert len(training) == 924
    assert len(every) == 1024


def test_steps_that_do_not_divide_the_bits_are_refused(bits):
    with pytest.raises(ValueError, match="every 3 does not divide the number of bits 16"):
        chain(bits, every=3)


def test_generated_answers_are_those_of_one_pass(bits):
    """Token by token with a cache, and all at once: the same likeliest tokens."""
    model = parity_decoder(16, seed=0)
    chains = answers(model, bits, num_tokens=16)
    with torch.no_grad():
        logits = model(torch.cat([written(bits)[0][:, :17], chains], dim=1)[:, :-1])
    assert torch.equal(logits[:, 16:].argmax(-1), chains)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_the_signal_is_the_correlation_of_parity_with_the_log_odds(n):
    """The loss of a label less that of the other is the log-odds: half their signed mean gradient."""
    model = parity_decoder(n, seed=3).double()
    total = 0.0
    for row in product((0, 1), repeat=n):
        logits = model(torch.tensor([[*row, EQUALS]]))[0, -1]
        total += (-1) ** sum(row) * (logits[1] - logits[0])
    slopes = torch.autograd.grad(total / 2 ** (n + 1), list(model.parameters()), allow_unused=True)
    length = math.sqrt(sum(slope.square().sum().item() for slope in slopes if slope is not None))
    assert parity_signal(n, seed=3) == pytest.approx(length, rel=1e-9)


# training


def test_a_round_keeps_what_its_reward_keeps(bits):
    model = parity_decoder(16, seed=0)
    before = [weight.clone() for weight in model.parameters()]
    kept = self_taught_round(model, bits, keep=right_answers, num_steps=2, seed=0)
    assert 0 < kept < len(bits)
    assert any(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )


@pytest.mark.parametrize("keep", [right_answers, right_steps])
def test_a_round_trains_on_the_kept_chains_alone(bits, keep, monkeypatch):
    """The questions are read and masked, and each chain that is learned earned its reward."""
    trained_on = []
    monkeypatch.setattr(
        reasoning,
        "train_on",
        lambda model, tokens, labels, **_: trained_on.extend([tokens, labels]),
    )
    model = parity_decoder(2, seed=0)
    kept = self_taught_round(model, bits[:, :2], keep=keep, num_steps=1, seed=0)
    tokens, labels = trained_on
    assert 0 < kept == len(tokens) < len(bits)
    assert keep(tokens[:, 3:], tokens[:, :2]).all()
    assert (labels[:, :3] == IGNORED).all()
    assert torch.equal(labels[:, 3:], tokens[:, 3:])


def test_two_mistakes_in_a_chain_leave_the_answer_right(bits):
    chains = chain(bits)
    chains[:, 4] = 1 - chains[:, 4]
    assert right_answers(chains, bits).all()
    assert not right_steps(chains, bits).any()


def test_training_stops_when_it_is_told_to(bits):
    model = parity_decoder(16, seed=0)
    losses = train_on(
        model, *written(bits), num_steps=50, seed=0, stop=lambda losses: len(losses) == 3
    )
    assert len(losses) == 3
