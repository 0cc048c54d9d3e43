"""Losses, scores and generation against transformers, PyTorch and naive versions; the loop's laws."""

import copy
import math
from functools import partial
from itertools import islice

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

from llmbook.config import ModelConfig
from llmbook.corpus import documents
from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.language_modelling import (
    IGNORED,
    acceptance,
    adamw,
    batches,
    bits_per_byte,
    card,
    fit,
    generate,
    greedy,
    held_out_loss,
    next_token_loss,
    perplexity,
    sampled,
    sliding_logits,
    split_documents,
    token_stream,
    warmup_cosine,
)
from llmbook.foundations.tokenization import BytePairTokenizer

TINY = ModelConfig(
    vocab_size=31, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=24, positions="rotary"
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0, std=0.3):
    return initialise(Decoder(TINY), generator=seeded(seed), std=std).eval()


def text(length, seed=1):
    return torch.randint(TINY.vocab_size, (length,), generator=seeded(seed))


class Table(nn.Module):
    """A bigram model: the logits are a row of a table, whatever stands before the last token."""

    def __init__(self, logits):
        super().__init__()
        self.rows = nn.Parameter(logits)

    def forward(self, tokens):
        return self.rows[tokens]


def test_loss_is_that_of_transformers_with_and_without_masked_labels():
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=24,
        )
    ).eval()  # fmt: skip
    tokens = text(40).view(2, 20)
    labels = tokens.clone()
    labels[0, :9], labels[1, 15:] = IGNORED, IGNORED
    for wanted in (tokens, labels):
        ours = next_token_loss(lambda t: theirs(t).logits, tokens, labels=wanted)
        torch.testing.assert_close(ours, theirs(tokens, labels=wanted).loss)
    torch.testing.assert_close(
        next_token_loss(lambda t: theirs(t).logits, tokens), theirs(tokens, labels=tokens).loss
    )


def test_loss_is_the_mean_over_labels_that_count():
    model, tokens = tiny(), text(12).view(1, 12)
    labels = torch.full_like(tokens, IGNORED)
    labels[0, 4], labels[0, 7] = tokens[0, 4], tokens[0, 7]
    log_p = model(tokens).log_softmax(-1)[0]
    expected = -(log_p[3, tokens[0, 4]] + log_p[6, tokens[0, 7]]) / 2
    torch.testing.assert_close(next_token_loss(model, tokens, labels=labels), expected)


def test_a_masked_prompt_sends_no_gradient_from_its_own_tokens():
    """Only the row of the last prompt token, which predicts the answer, is moved."""
    model = Table(torch.zeros(5, 5))
    tokens, labels = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[IGNORED, IGNORED, IGNORED, 3]])
    next_token_loss(model, tokens, labels=labels).backward()
    assert model.rows.grad.abs().sum(-1).nonzero().flatten().tolist() == [2]


def test_an_epoch_gives_every_window_once_and_each_target_once():
    tokens = torch.arange(1000)
    drawn = list(islice(batches(tokens, batch_size=4, seq_len=10, generator=seeded()), 24))
    assert all(batch.shape == (4, 11) for batch in drawn)
    assert all((batch.diff(dim=1) == 1).all() for batch in drawn)
    targets = torch.cat([batch[:, 1:].flatten() for batch in drawn])
    assert len(targets.unique()) == len(targets) == 960


def test_batches_depend_on_the_generator_alone():
    def first(seed):
        data = batches(torch.arange(500), batch_size=4, seq_len=10, generator=seeded(seed))
        return torch.stack(list(islice(data, 30)))

    assert first(1).equal(first(1))
    assert not first(1).equal(first(2))


def test_too_short_a_text_is_refused():
    for length in (0, 1, 10, 49):
        with pytest.raises(ValueError, match=f"{length} tokens do not fill a batch"):
            next(batches(torch.arange(length), batch_size=4, seq_len=10, generator=seeded()))
    next(batches(torch.arange(51), batch_size=4, seq_len=10, generator=seeded()))


def test_schedule_is_that_of_transformers_but_for_the_floor():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 0, 39)
    expected = []
    for _ in range(40):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = warmup_cosine(2.0, num_steps=45, num_warmup_steps=5, floor=0.0)
    assert ours[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert ours[5:] == pytest.approx(expected)
    assert warmup_cosine(2.0, num_steps=45, num_warmup_steps=5)[-1] == pytest.approx(0.2)


def test_a_step_of_fit_is_one_of_pytorch():
    model = tiny()
    other = copy.deepcopy(model)
    data = list(islice(batches(text(400), batch_size=2, seq_len=8, generator=seeded()), 3))
    losses = fit(model, data, optimizer=adamw(model), schedule=[0.01, 0.02, 0.03], max_norm=0.5)
    optimizer = torch.optim.AdamW(other.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    vectors = [weight for weight in other.parameters() if weight.dim() == 1]
    optimizer.param_groups[0]["params"] = [w for w in other.parameters() if w.dim() > 1]
    optimizer.add_param_group({"params": vectors, "weight_decay": 0.0})
    expected = []
    for rate, batch in zip((0.01, 0.02, 0.03), data, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = other(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:])
        expected.append(loss.item())
        loss.backward()
        norm = torch.stack([w.grad.norm() for w in other.parameters()]).norm()
        assert norm > 0.5  # so that clipping matters
        for weight in other.parameters():
            weight.grad *= 0.5 / (norm + 1e-6)
        optimizer.step()
        other.zero_grad()
    assert losses == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_fit_in_two_parts_is_fit_in_one():
    """No batch is lost between the parts, and the optimizer's state is all that must be kept."""
    rates = warmup_cosine(1e-2, num_steps=9, num_warmup_steps=2)

    def run(*parts):
        model = tiny()
        optimizer = adamw(model)
        data = batches(text(300), batch_size=2, seq_len=8, generator=seeded())
        losses = [fit(model, data, optimizer=optimizer, schedule=part) for part in parts]
        return [loss for part in losses for loss in part], model.state_dict()

    losses, weights = run(rates)
    losses_in_parts, weights_in_parts = run(rates[:4], rates[4:])
    assert losses == losses_in_parts
    assert all(weights[name].equal(weights_in_parts[name]) for name in weights)


def test_fit_reaches_the_entropy_of_a_markov_chain():
    """Nothing can be learned beyond it: the loss of the best model is known here."""
    chain = torch.rand(6, 6, generator=seeded(3)).pow(4)
    chain = chain / chain.sum(-1, keepdim=True)
    tokens, luck = [0], seeded(4)
    for _ in range(10_000):
        tokens.append(int(chain[tokens[-1]].multinomial(1, generator=luck)))
    stream = torch.tensor(tokens)
    model = Table(torch.zeros(6, 6))
    fit(
        model, batches(stream, batch_size=32, seq_len=64, generator=seeded()),
        optimizer=adamw(model, weight_decay=0.0), schedule=[0.1] * 150 + [0.01] * 50,
    )  # fmt: skip
    share = torch.bincount(stream, minlength=6) / len(stream)
    entropy = -(share[:, None] * chain * chain.clamp(min=1e-30).log()).sum().item()
    assert held_out_loss(model, stream, seq_len=64) == pytest.approx(entropy, abs=0.02)


def test_a_loss_that_is_not_finite_stops_training():
    model = Table(torch.full((5, 5), torch.nan))
    with pytest.raises(ValueError, match="loss nan at step 0 is not finite"):
        fit(model, [torch.tensor([[1, 2]])], optimizer=adamw(model), schedule=[0.1])


def test_fit_takes_any_loss_and_batch():
    model = Table(torch.zeros(5, 5))
    pairs = [(torch.tensor([[1, 2]]), torch.tensor([[IGNORED, 2]]))] * 20
    losses = fit(
        model, pairs, optimizer=adamw(model), schedule=[0.1] * 20,
        loss=lambda m, pair: next_token_loss(m, pair[0], labels=pair[1]),
    )  # fmt: skip
    assert losses[0] == pytest.approx(math.log(5))
    assert losses[-1] < 0.5


@pytest.mark.parametrize(
    ("length", "seq_len", "stride"),
    [(50, 8, 3), (50, 8, 8), (50, 8, 1), (9, 8, 4), (5, 8, 4), (2, 8, 2)],
)
def test_sliding_windows_give_each_token_its_context_once(length, seq_len, stride):
    """Against one pass for each token over all of the window that it may see."""
    model, tokens = tiny(), text(length)
    pieces = list(sliding_logits(model, tokens, seq_len=seq_len, stride=stride, batch_size=2))
    assert torch.cat([wanted for _, wanted in pieces]).equal(tokens[1:])
    logits = torch.cat([piece for piece, _ in pieces])
    for i in range(length - 1):
        windows_before = max(0, math.ceil((i + 1 - seq_len) / stride))
        start = max(0, min(seq_len + windows_before * stride, length - 1) - seq_len)
        assert i - start >= min(i, seq_len - stride)  # tokens before this one, itself apart
        torch.testing.assert_close(logits[i], model(tokens[None, start : i + 1])[0, -1])


def test_held_out_loss_of_a_bigram_model_ignores_the_windows():
    logits, tokens = torch.randn(31, 31, generator=seeded()), text(100)
    expected = nn.functional.cross_entropy(logits[tokens[:-1]], tokens[1:]).item()
    for stride in (1, 5, 8, None):
        loss = held_out_loss(Table(logits), tokens, seq_len=8, stride=stride)
        assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_beyond_the_window_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride {stride} is not between 1 and seq_len 8"):
        held_out_loss(tiny(), text(30), seq_len=8, stride=stride)
    with pytest.raises(ValueError, match="1 tokens: none has another before it"):
        held_out_loss(tiny(), text(1), seq_len=8)


def test_bits_per_byte_is_what_an_arithmetic_coder_would_write():
    """-log2 of the product of the probabilities, over the bytes."""
    probabilities, num_bytes = [0.5, 0.25, 0.125], 12
    loss = -sum(map(math.log, probabilities)) / 3
    bits = -math.log2(math.prod(probabilities))
    assert bits_per_byte(loss, num_tokens=3, num_bytes=num_bytes) == pytest.approx(bits / num_bytes)
    assert perplexity(loss) == pytest.approx(math.prod(probabilities) ** (-1 / 3))


def test_acceptance_counts_what_the_distributions_share():
    p, q = torch.tensor([0.5, 0.5, 1e-30]).log(), torch.tensor([0.2, 1e-30, 0.8]).log()
    target, draft = Table(p.repeat(3, 1)), Table(q.repeat(3, 1))
    tokens = torch.tensor([0, 1, 2, 0, 1])
    assert acceptance(target, draft, tokens, seq_len=4) == pytest.approx(0.2)
    assert acceptance(target, target, tokens, seq_len=4) == pytest.approx(1)


def test_acceptance_is_how_often_speculation_keeps_a_token():
    """leviathan2023fast, section 2.3: drawn from q, kept with probability min(1, p / q)."""
    p, q = (torch.randn(6, generator=seeded(i)).softmax(-1) for i in (1, 2))
    drafted = q.multinomial(100_000, replacement=True, generator=seeded(3))
    kept = torch.rand(100_000, generator=seeded(4)) < (p / q)[drafted]
    expected = acceptance(
        Table(p.log().repeat(6, 1)), Table(q.log().repeat(6, 1)), torch.arange(6), seq_len=5
    )
    assert kept.float().mean().item() == pytest.approx(expected, abs=0.005)


def test_generation_with_the_cache_is_generation_without():
    model, prompt = tiny(), text(10).view(2, 5)
    written = generate(model, prompt, num_tokens=12)
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert written.equal(tokens[:, 5:])
    assert len(written.unique()) > 3  # the model says something


def test_sampled_tokens_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    for temperature in (0.5, 1.0, 3.0):
        draws = sampled(logits.repeat(100_000, 1), temperature=temperature, generator=seeded())
        frequencies = torch.bincount(draws, minlength=4) / 100_000
        torch.testing.assert_close(
            frequencies, (logits / temperature).softmax(-1), atol=0.006, rtol=0
        )


def test_a_cold_sample_is_greedy_and_a_seed_repeats():
    model, prompt = tiny(), text(4).view(1, 4)

    def write(temperature, seed):
        choose = partial(sampled, temperature=temperature, generator=seeded(seed))
        return generate(model, prompt, num_tokens=15, choose=choose)

    assert write(1e-4, 5).equal(generate(model, prompt, num_tokens=15, choose=greedy))
    assert write(1.0, 5).equal(write(1.0, 5))
    assert not write(1.0, 5).equal(write(1.0, 6))
    with pytest.raises(ValueError, match=r"temperature 0\.0 is not positive"):
        sampled(torch.zeros(1, 3), temperature=0.0, generator=seeded())


def test_generation_stops_at_the_end_of_the_context():
    model = tiny()
    assert generate(model, text(4).view(1, 4), num_tokens=20).shape == (1, 20)
    assert generate(model, text(4).view(1, 4), num_tokens=0).shape == (1, 0)
    with pytest.raises(ValueError, match="4 tokens and 21 more do not fit into max_seq_len 24"):
        generate(model, text(4).view(1, 4), num_tokens=21)


def test_the_split_keeps_documents_whole_and_loses_none():
    training, held_out = split_documents()
    assert sorted(d.name for d in (*training, *held_out)) == sorted(d.name for d in documents())
    size = sum(len(d.text) for d in held_out)
    assert 0.03 < size / sum(len(d.text) for d in documents()) < 0.07
    assert {d.kind for d in held_out} == {"documentation", "library"}


def test_documents_are_separated_by_the_special_token():
    tokenizer = BytePairTokenizer(merges=((97, 98),), special_tokens=("<end>",))
    assert token_stream(["ab", "", "b"], tokenizer).tolist() == [257, 256, 257, 257, 98, 257]


def test_an_unknown_model_is_named_with_the_known_ones():
    with pytest.raises(KeyError, match="no model of the book is called 'large'"):
        card("large")
