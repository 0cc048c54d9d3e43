"""The stored runs are those of the command; the task and its masks are what they are said to be."""

import json
from dataclasses import asdict

import pytest
import torch

from llmbook.foundations.instruction_following import END, START, padded, with_special_tokens
from llmbook.foundations.instruction_runs import (
    BATCH_SIZE,
    FILE,
    FORMS,
    NUM_FIRST_STEPS,
    UNSEEN,
    Plan,
    chats,
    epochs,
    first_label,
    instructions,
    judged,
    loss_of_both,
    names,
    old_text,
    plans,
    runs,
    stopped,
    tuned,
)
from llmbook.foundations.language_modelling import (
    IGNORED,
    load,
    next_token_loss,
    split_documents,
)


@pytest.fixture(scope="module")
def tokenizer():
    return with_special_tokens(*load("draft"), [START, END])[1]


def test_every_plan_was_run_and_nothing_else():
    made = [{key: run[key] for key in asdict(Plan(num_examples=1))} for run in runs()]
    assert sorted(map(str, made)) == sorted(str(asdict(plan)) for plan in plans())
    header = json.loads(FILE.read_text(encoding="utf8"))
    assert header["command"] == "python -m llmbook.foundations.instruction_runs"
    assert all(run["cpu_seconds"] > 0 for run in runs())


@pytest.mark.parametrize("kind", [{}, {"mask": "everything"}, {"pretrained": False}])
def test_the_first_steps_of_a_run_repeat(kind):
    num_examples = 2048 if "pretrained" in kind else 512
    plan = Plan(num_examples=num_examples, seed=1, **kind)
    (run,) = (run for run in runs() if asdict(plan).items() <= run.items())
    losses = tuned(plan, num_steps=NUM_FIRST_STEPS)[2]
    assert losses == pytest.approx(run["first_losses"], abs=0.01)


def test_names_that_judge_are_in_no_example_and_each_is_one_token(tokenizer):
    learned, judging = names(tokenizer)
    assert len(judging) == 100
    assert len(learned) > 300
    assert not set(learned) & set(judging)
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in learned + judging)


def test_forms_take_turns_and_the_unseen_are_not_among_them(tokenizer):
    pairs = instructions(
        ["one", "two"], num_examples=17, generator=torch.Generator().manual_seed(0)
    )
    assert [question.split()[0] for question, _ in pairs[:8]] == [f[0].split()[0] for f in FORMS]
    assert pairs[16][0].startswith("Import the module")
    assert all(("one" in q and "one" in a) or ("two" in q and "two" in a) for q, a in pairs)
    assert not {f[1].split()[0] for f in FORMS} & {f[1].split()[0] for f in UNSEEN}


def test_masks_count_what_they_say(tokenizer):
    pair = [("Return value.", "return value")]
    ((ids, right),) = chats(pair, tokenizer)
    kept = {}
    for mask in ("everything", "no end", "late"):
        ((same, learned),) = chats(pair, tokenizer, mask=mask)
        assert same == ids
        kept[mask] = tokenizer.decode(i for i, flag in zip(ids, learned, strict=True) if flag)
    assert tokenizer.decode(i for i, flag in zip(ids, right, strict=True) if flag) == (
        f"return value{END}"
    )
    assert kept["everything"] == tokenizer.decode(ids)
    assert kept["no end"] == "return value"
    assert kept["late"] == f" value{END}"


def test_an_epoch_holds_every_example_once(tokenizer):
    pairs = instructions(
        names(tokenizer)[0], num_examples=40, generator=torch.Generator().manual_seed(0)
    )
    made = chats(pairs, tokenizer)
    data = epochs(made, padding=0, generator=torch.Generator().manual_seed(1))
    rows = []
    while len(rows) < 40:
        tokens, labels = next(data)
        assert len(tokens) <= BATCH_SIZE
        rows += [row[kept].tolist() for row, kept in zip(tokens, labels != IGNORED, strict=True)]
    wanted = [[i for i, flag in zip(*chat, strict=True) if flag] for chat in made]
    assert sorted(rows) == sorted(wanted)


def test_first_label_keeps_one_label_a_row():
    labels = torch.tensor([[IGNORED, 5, 6, IGNORED, 7], [IGNORED, IGNORED, IGNORED, 0, 1]])
    assert first_label(labels).tolist() == [[-100, 5, -100, -100, -100], [-100] * 3 + [0, -100]]


def test_eight_examples_teach_the_form_and_not_the_name():
    """With a seed that no stored run has, and fewer steps."""
    model, tokenizer, _ = tuned(Plan(num_examples=8, seed=7), num_steps=30)
    scores = judged(model, tokenizer)
    assert scores["form"] > 0.9
    assert scores["exact"] < 0.1
    assert scores["unseen_form"] < 0.1
    assert scores["corpus_loss"] > 3.5  # it was below 3 before
    pairs = [(question.format("text"), "") for question, _ in FORMS]
    one_by_one = [stopped(model, [pair], tokenizer, num_tokens=3).item() for pair in pairs]
    assert stopped(model, pairs, tokenizer, num_tokens=3).tolist() == one_by_one
    assert set(one_by_one) == {True, False}  # a loop is longer than three tokens


def test_a_model_that_never_learned_the_end_does_not_stop():
    model, tokenizer, _ = tuned(Plan(num_examples=64, mask="no end", seed=7), num_steps=30)
    scores = judged(model, tokenizer)
    assert scores["form"] > 0.9
    assert scores["stops"] == scores["exact"] == 0


def test_old_text_is_of_the_training_documents_and_its_loss_is_added():
    windows = next(old_text(2, seed=0))
    assert windows.shape == (2, 129)  # 128 to learn and one before them
    model, tokenizer = with_special_tokens(*load("small"), [START, END])
    texts = [document.text for document in split_documents()[0]]
    for window in windows.tolist():
        pieces = tokenizer.decode(window).split("<|endoftext|>")
        assert any(max(pieces, key=len).strip("\ufffd") in text for text in texts)
    answers = padded(chats([("Return a.", "return a")], tokenizer), padding=0)
    with torch.no_grad():
        alone = next_token_loss(model, answers[0], labels=answers[1])
        assert loss_of_both(model, (answers, None)) == alone
        both = loss_of_both(model, (answers, windows))
        assert both.item() == pytest.approx((alone + next_token_loss(model, windows)).item())


def test_padding_of_a_batch_is_never_a_label(tokenizer):
    made = chats([("Return a.", "return a"), ("Loop over files.", "for item in files:")], tokenizer)
    _, labels = padded(made, padding=tokenizer.special_ids[END])
    assert (labels == tokenizer.special_ids[END]).sum(-1).tolist() == [1, 1]
