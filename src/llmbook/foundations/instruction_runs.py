"""A few dozen instructions and what they teach: `python -m llmbook.foundations.instruction_runs`.

Page: foundations/instruction_following; `instruction_runs.json` beside this file is what the
command wrote. The model is the book's own `small`, the instructions ask for one line of Python, and
those that judge ask for names that no example held. A run that stands in the file is not done again.
Left out: a search for rates and numbers of steps, which are the same for every run of a kind.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmbook.foundations.decoder import Decoder, initialise
from llmbook.foundations.instruction_following import (
    END,
    START,
    answered,
    encode_chat,
    padded,
    with_special_tokens,
)
from llmbook.foundations.language_modelling import (
    IGNORED,
    adamw,
    batches,
    fit,
    generate,
    held_out_loss,
    load,
    next_token_loss,
    split_documents,
    token_stream,
    warmup_cosine,
)
from llmbook.foundations.tokenization import BytePairTokenizer
from llmbook.foundations.weights import processor

FILE = Path(__file__).with_suffix(".json")
FORMS = (  # an instruction, and the line of Python that follows it
    ("Import the module {}.", "import {}"),
    ("Return {}.", "return {}"),
    ("Define a function called {}.", "def {}():"),
    ("Define a class called {}.", "class {}:"),
    ("Yield {}.", "yield {}"),
    ("Delete {}.", "del {}"),
    ("Loop over {}.", "for item in {}:"),
    ("Check that {} holds.", "assert {}"),
)
UNSEEN = (("Raise {}.", "raise {}"), ("Await {}.", "await {}"))  # never among the examples
NUM_TEST_NAMES = 100
BATCH_SIZE, NUM_WARMUP_STEPS, SEQ_LEN = 16, 5, 256
NUM_FIRST_STEPS = 5  # a test repeats them

Mask = Literal["answers", "everything", "no end", "late"]
WRONG_MASKS: tuple[Mask, ...] = ("everything", "no end", "late")
Chat = tuple[list[int], list[bool]]
Batch = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One tuning: all that decides its outcome, beside the machine."""

    num_examples: int
    mask: Mask = "answers"
    pretrained: bool = True
    num_steps: int = 80
    old_windows: int = 0  # of the corpus, learned with each batch of answers
    seed: int = 0

    @property
    def peak_rate(self) -> float:
        """Half the rate that `small` was trained with; from random weights, all of it."""
        return 1e-3 if self.pretrained else 2e-3


def names(tokenizer: BytePairTokenizer) -> tuple[list[str], list[str]]:
    """Words that are one token with the space before them: for the examples, and for judging."""
    words = sorted(
        token[1:].decode() for token in tokenizer.tokens if re.fullmatch(rb" [a-z]{4,10}", token)
    )
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [words[i] for i in order]
    return shuffled[NUM_TEST_NAMES:], shuffled[:NUM_TEST_NAMES]


def instructions(
    words: list[str],
    *,
    num_examples: int,
    generator: torch.Generator,
    forms: tuple[tuple[str, str], ...] = FORMS,
) -> list[tuple[str, str]]:
    """Pairs of an instruction and its answer: the forms in turn, each about a word drawn anew."""
    drawn = torch.randint(len(words), (num_examples,), generator=generator).tolist()
    pairs = zip(drawn, range(num_examples), strict=True)
    return [
        (forms[i % len(forms)][0].format(words[d]), forms[i % len(forms)][1].format(words[d]))
        for d, i in pairs
    ]


def chats(
    pairs: list[tuple[str, str]], tokenizer: BytePairTokenizer, *, mask: Mask = "answers"
) -> list[Chat]:
    """Conversations of two turns and what is learned of them, rightly or in one of three wrong ways.

    "answers" is the right one; "everything" learns the instruction as well, "no end" all of the
    answer but the token that ends it, "late" all but the answer's first token.
    """
    made = []
    for question, reply in pairs:
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": reply})
        ids, learned = encode_chat(messages, tokenizer)
        first, last = learned.index(True), len(learned) - 1 - learned[::-1].index(True)
        if mask == "everything":
            learned = [True] * len(ids)
        elif mask == "no end":
            learned[last] = False
        elif mask == "late":
            learned[first] = False
        made.append((ids, learned))
    return made


def epochs(examples: list[Chat], *, padding: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches without end, the examples in a new order each time round."""
    while True:
        order = torch.randperm(len(examples), generator=generator)
        for some in order.split(BATCH_SIZE):
            yield padded([examples[i] for i in some.tolist()], padding=padding)


def tuned(
    plan: Plan, *, num_steps: int | None = None
) -> tuple[Decoder, BytePairTokenizer, list[float]]:
    """The model after its instructions, its tokenizer, and the losses on the way.

    With `old_windows` the loss is that of the answers and that of the old text, added: a mean each.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    model, tokenizer = with_special_tokens(*load("small"), [START, END])
    if not plan.pretrained:
        initialise(model, generator=generator, std=0.04)
    pairs = instructions(names(tokenizer)[0], num_examples=plan.num_examples, generator=generator)
    examples = chats(pairs, tokenizer, mask=plan.mask)
    data = zip(
        epochs(examples, padding=tokenizer.special_ids[END], generator=generator),
        old_text(plan.old_windows, seed=plan.seed),
        strict=False,
    )
    rates = warmup_cosine(
        plan.peak_rate, num_steps=plan.num_steps, num_warmup_steps=NUM_WARMUP_STEPS
    )
    losses = fit(
        model,
        data,
        optimizer=adamw(model, weight_decay=0.0),
        schedule=rates[:num_steps],
        loss=loss_of_both,
    )
    return model, tokenizer, losses


def old_text(num_windows: int, *, seed: int) -> Iterator[Int[Tensor, "n 129"] | None]:
    """Windows of 128 tokens and one before, of what `small` was trained on, or nothing, without end."""
    if not num_windows:
        return repeat(None)
    text = token_stream((d.text for d in split_documents()[0][::8]), load("small")[1])
    generator = torch.Generator().manual_seed(seed)
    return batches(text, batch_size=num_windows, seq_len=128, generator=generator)


def loss_of_both(
    model: nn.Module, batch: tuple[Batch, Int[Tensor, "n 129"] | None]
) -> Float[Tensor, ""]:
    """The loss of the answers, and of the old text where there is any."""
    (tokens, labels), text = batch
    loss = next_token_loss(model, tokens, labels=labels)
    return loss if text is None else loss + next_token_loss(model, text)


def first_label(labels: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The labels without all but the first of each row: which line of Python it is to be."""
    counted = labels != IGNORED
    return torch.where(counted & (counted.cumsum(-1) == 1), labels, IGNORED)


def stopped(
    model: Decoder, pairs: list[tuple[str, str]], tokenizer: BytePairTokenizer, *, num_tokens: int
) -> Bool[Tensor, " n"]:
    """Whether each answer ends within so many tokens, when it is really written."""
    prompts = [
        encode_chat([{"role": "user", "content": q}], tokenizer, add_generation_prompt=True)[0]
        for q, _ in pairs
    ]
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for length in {len(prompt) for prompt in prompts}:  # those of one length are written together
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        written = generate(model, torch.tensor([prompts[i] for i in rows]), num_tokens=num_tokens)
        ended[rows] = (written == tokenizer.special_ids[END]).any(-1)
    return ended


def judged(model: Decoder, tokenizer: BytePairTokenizer) -> dict[str, float]:
    """What a model does with 160 instructions about new names, and with the held-out corpus.

    `form`: the answer begins as it should; `exact`: it is right to its end and ends there;
    `unseen_form`: `form` for two kinds of instruction of which there was no example; `stops`: it
    ends within 24 tokens (of 16 instructions); `corpus_loss`: nats a token of the first held-out
    documents.
    """
    words, generator = names(tokenizer)[1], torch.Generator().manual_seed(99)
    test = instructions(words, num_examples=160, generator=generator)
    unseen = instructions(words, num_examples=40, generator=generator, forms=UNSEEN)
    padding = tokenizer.special_ids[END]
    tokens, labels = padded(chats(test, tokenizer), padding=padding)
    new_tokens, new_labels = padded(chats(unseen, tokenizer), padding=padding)
    text = token_stream((d.text for d in split_documents()[1]), load("small")[1])[:4097]
    scores = {
        "form": answered(model, tokens, labels=first_label(labels)).float().mean(),
        "exact": answered(model, tokens, labels=labels).float().mean(),
        "unseen_form": answered(model, new_tokens, labels=first_label(new_labels)).float().mean(),
        "stops": stopped(model, test[:16], tokenizer, num_tokens=24).float().mean(),
    }
    return {name: round(score.item(), 4) for name, score in scores.items()} | {
        "corpus_loss": round(held_out_loss(model, text, seq_len=SEQ_LEN, stride=SEQ_LEN), 3)
    }


def plans() -> Iterator[Plan]:
    """All runs: three seeds for the number of examples, two for what is compared with it."""
    for seed in range(3):
        for num_examples in (8, 128, 512, 2048):
            yield Plan(num_examples=num_examples, seed=seed)
    for seed in range(2):
        for num_steps in (10, 20, 40):
            yield Plan(num_examples=8, num_steps=num_steps, seed=seed)
        yield Plan(num_examples=2048, pretrained=False, seed=seed)
        for mask in WRONG_MASKS:
            yield Plan(num_examples=512, mask=mask, seed=seed)
        yield Plan(num_examples=512, old_windows=4, seed=seed)


def measured(plan: Plan) -> dict[str, Any]:
    """Tune, judge, and tell."""
    started = time.process_time()
    model, tokenizer, losses = tuned(plan)
    return {
        **asdict(plan),
        **judged(model, tokenizer),
        "first_losses": [round(loss, 4) for loss in losses[:NUM_FIRST_STEPS]],
        "last_loss": round(losses[-1], 4),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def runs() -> list[dict[str, Any]]:
    """The stored runs, one dictionary each."""
    stored: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf8"))["runs"]
    return stored


def main() -> None:
    """Do what the file does not hold yet, and write it after every run."""
    parser = argparse.ArgumentParser(description="Tune small on few instructions.")
    parser.add_argument("--to", type=Path, default=FILE, help="file that is written and resumed")
    file: Path = parser.parse_args().to
    torch.set_num_threads(1)  # the order of a sum, and so its last bit, depends on their number
    header = {
        "command": "python -m llmbook.foundations.instruction_runs",
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "processor": processor(),
    }
    done = json.loads(file.read_text("utf8"))["runs"] if file.exists() else []
    for plan in plans():
        if not any(asdict(plan) == {key: run[key] for key in asdict(plan)} for run in done):
            done.append(measured(plan))
            lines = ",\n".join("  " + json.dumps(run) for run in done)
            text = json.dumps(header, indent=1)[:-2] + f',\n "runs": [\n{lines}\n ]\n}}\n'
            file.write_text(text, encoding="utf8")
            print(done[-1], flush=True)


if __name__ == "__main__":
    main()
