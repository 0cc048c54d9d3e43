"""Training a decoder on text, judging it on text it never saw, and letting it write.

Page: foundations/language_modelling. Papers: radford2018improving, eq. (1) (the objective);
gao2020pile, section 3.1 (bits per byte); brown2020language, appendix B (the loop's settings);
leviathan2023fast, corollary 3.6 (acceptance).
`fit` is the one loop that every page trains with. The n-gram baseline stands in
`foundations.kneser_ney`, the recipes of the book's own models in `foundations.weights`.
Left out: choosing among the likeliest tokens only (inference/sampling), mixed precision and
several devices (training).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn

from llmbook.config import ModelConfig
from llmbook.corpus import Document, documents
from llmbook.foundations.attention import KVCache
from llmbook.foundations.decoder import Decoder
from llmbook.foundations.tokenization import BytePairTokenizer

LanguageModel = Callable[
    [Tensor], Tensor
]  # tokens "B T" to logits "B T V": any `nn.Module` of the book
IGNORED = -100  # the label that no loss counts, as in PyTorch and transformers


def next_token_loss(
    model: LanguageModel, tokens: Int[Tensor, "B T"], *, labels: Int[Tensor, "B T"] | None = None
) -> Float[Tensor, ""]:
    """Mean of -ln p(t_i | t_1 ... t_(i-1)) in nats: radford2018improving, eq. (1).

    `labels` are the tokens themselves, or `IGNORED` where a token is only read and not to be
    learned (a prompt, padding); the mean is over those that count. The first has nothing before it.

    >>> uniform = lambda tokens: torch.zeros(*tokens.shape, 8)
    >>> round(next_token_loss(uniform, torch.tensor([[1, 2, 3]])).exp().item(), 4)
    8.0
    """
    logits = model(tokens[:, :-1])  # B T-1 V
    wanted = (tokens if labels is None else labels)[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def batches(
    tokens: Int[Tensor, " n"], *, batch_size: int, seq_len: int, generator: torch.Generator
) -> Iterator[Int[Tensor, "B T+1"]]:
    """Windows of the text without end, each `seq_len` tokens to learn and one before them.

    An epoch cuts the text at a new offset and shuffles the windows; a last batch too small is left.

    Raises:
        ValueError: if the text does not fill one batch.
    """
    if len(tokens) < (batch_size + 1) * seq_len + 1:
        raise ValueError(
            f"{len(tokens)} tokens do not fill a batch of {batch_size} windows of {seq_len}"
        )
    while True:
        offset = int(torch.randint(seq_len, (), generator=generator))
        starts = torch.arange(offset, len(tokens) - seq_len, seq_len)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for i in range(0, len(starts) - batch_size + 1, batch_size):
            yield tokens[starts[i : i + batch_size, None] + torch.arange(seq_len + 1)]


def warmup_cosine(
    peak: float, *, num_steps: int, num_warmup_steps: int, floor: float = 0.1
) -> list[float]:
    """Learning rates: a straight line up to `peak`, half a cosine down to `floor` times it.

    brown2020language, appendix B, falls to a tenth as well.

    >>> [round(rate, 2) for rate in warmup_cosine(1.0, num_steps=6, num_warmup_steps=2)]
    [0.5, 1.0, 1.0, 0.78, 0.33, 0.1]
    """
    up = [peak * (i + 1) / num_warmup_steps for i in range(num_warmup_steps)]
    num_down = num_steps - num_warmup_steps
    fractions = (i / max(1, num_down - 1) for i in range(num_down))
    down = [
        peak * (floor + (1 - floor) * (1 + math.cos(math.pi * fraction)) / 2)
        for fraction in fractions
    ]
    return up + down


def fit(
    model: nn.Module,
    data: Iterable[Any],
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Iterable[float],
    loss: Callable[[nn.Module, Any], Float[Tensor, ""]] = next_token_loss,
    max_norm: float = 1.0,
) -> list[float]:
    """Train in place, one step for each learning rate of the schedule; return the losses.

    A step: the loss of a batch, its gradients scaled down to `max_norm` if they are longer
    (to 1 as in brown2020language, appendix B), one update. The loss is that before the update.

    Raises:
        ValueError: if a loss is not finite.
    """
    losses: list[float] = []
    for rate, batch in zip(schedule, data, strict=False):  # no batch is drawn beyond the schedule
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(model, batch)
        if not value.isfinite():
            raise ValueError(f"loss {value.item()} at step {len(losses)} is not finite")
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        losses.append(value.item())
    return losses


def adamw(
    model: nn.Module, *, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """PyTorch's AdamW that decays matrices, not gains and biases; `fit` sets its learning rate.

    Betas and decay are those of brown2020language, appendix B.
    """
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=betas)


def split_documents() -> tuple[list[Document], list[Document]]:
    """The frozen corpus for training, and the documents held out: every twentieth, whole.

    >>> [len(part) for part in split_documents()]
    [488, 26]
    """
    every = documents()
    return [d for i, d in enumerate(every) if i % 20 != 10], list(every[10::20])


def token_stream(texts: Iterable[str], tokenizer: BytePairTokenizer) -> Int[Tensor, " n"]:
    """All texts in one row, the special token before each and after the last."""
    (end,) = tokenizer.special_ids.values()
    ids = [end]
    for text in texts:
        ids += [*tokenizer.encode(text), end]
    return torch.tensor(ids)


@torch.no_grad()
def sliding_logits(
    model: LanguageModel,
    tokens: Int[Tensor, " n"],
    *,
    seq_len: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[Float[Tensor, "m V"], Int[Tensor, " m"]]]:
    """Logits and next token, once for every token but the first, in the order of the text.

    Windows of `seq_len` tokens advance by `stride` (half of it unless given); from each but the
    first only the last `stride` are taken, so that every later token sees at least
    `seq_len - stride` before it. A stride of `seq_len` is
    cheapest, and gives tokens at a window's start nothing to go by.

    Raises:
        ValueError: if the stride is longer than the window, or no token has one before it.
    """
    stride = max(1, seq_len // 2) if stride is None else stride
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride {stride} is not between 1 and seq_len {seq_len}")
    if len(tokens) < 2:
        raise ValueError(f"{len(tokens)} tokens: none has another before it")
    inputs, wanted = tokens[:-1], tokens[1:]
    first = min(seq_len, len(inputs))
    yield model(inputs[None, :first])[0], wanted[:first]
    starts = torch.tensor(range(stride, len(inputs) - seq_len + 1, stride), dtype=torch.long)
    for some in starts.split(batch_size) if len(starts) else ():
        windows = some[:, None] + torch.arange(seq_len)  # B T
        logits = model(inputs[windows])[:, -stride:]  # B stride V
        yield logits.flatten(0, 1), wanted[windows[:, -stride:]].flatten()
    rest = (len(inputs) - first) % stride
    if rest:
        yield model(inputs[None, -seq_len:])[0, -rest:], wanted[-rest:]


def held_out_loss(
    model: LanguageModel, tokens: Int[Tensor, " n"], *, seq_len: int, stride: int | None = None
) -> float:
    """Mean of -ln p over every token but the first, in nats, as `sliding_logits` cuts the text."""
    total = sum(
        nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        for logits, wanted in sliding_logits(model, tokens, seq_len=seq_len, stride=stride)
    )
    return total / (len(tokens) - 1)


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats: among so many equally likely tokens the model would be as unsure.

    >>> round(perplexity(math.log(50)))
    50
    """
    return math.exp(loss)


def bits_per_byte(loss: float, *, num_tokens: int, num_bytes: int) -> float:
    """Loss in nats a token -> bits a byte: loss / ln 2 * tokens / bytes (gao2020pile, 3.1).

    It does not depend on how the text was cut into tokens.

    >>> bits_per_byte(math.log(256), num_tokens=10, num_bytes=10)  # every byte as likely
    8.0
    """
    return loss / math.log(2) * num_tokens / num_bytes


def acceptance(
    target: LanguageModel, draft: LanguageModel, tokens: Int[Tensor, " n"], *, seq_len: int
) -> float:
    """Mean over the text of sum_v min(p_v, q_v): how often speculation keeps a drafted token.

    leviathan2023fast, corollary 3.6. What it lacks to 1 is the distance in total variation.
    """
    overlaps = [
        torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1)
        for (p, _), (q, _) in zip(
            sliding_logits(target, tokens, seq_len=seq_len),
            sliding_logits(draft, tokens, seq_len=seq_len),
            strict=True,
        )
    ]
    return torch.cat(overlaps).mean().item()


def greedy(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """The likeliest token."""
    return logits.argmax(-1)


def sampled(
    logits: Float[Tensor, "B V"], *, temperature: float, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """A token drawn from softmax(logits / temperature).

    Raises:
        ValueError: if the temperature is not positive; `greedy` is its limit at 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive")
    weights = (logits / temperature).softmax(-1)
    return weights.multinomial(1, generator=generator)[:, 0]


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: Int[Tensor, "B T"],
    *,
    num_tokens: int,
    choose: Callable[[Float[Tensor, "B V"]], Int[Tensor, " B"]] = greedy,
) -> Int[Tensor, "B steps"]:
    """Tokens after the prompt, each chosen from the logits that those before it give.

    Keys and values are remembered (inference/kv_cache), so each token runs once.

    Raises:
        ValueError: if prompt and tokens together are longer than the model was made for.
    """
    if prompt.shape[1] + num_tokens > model.config.max_seq_len:
        raise ValueError(
            f"{prompt.shape[1]} tokens and {num_tokens} more do not fit into max_seq_len "
            f"{model.config.max_seq_len}"
        )
    caches = [KVCache() for _ in model.layers]
    steps: list[Tensor] = []
    tokens = prompt
    for _ in range(num_tokens):
        steps.append(choose(model(tokens, caches=caches)[:, -1]))
        tokens = steps[-1][:, None]  # B 1
    return torch.stack(steps, dim=1) if steps else prompt[:, :0]


@cache
def card(name: str) -> dict[str, Any]:
    """What is known of one of the book's own models: its config, command, data, hash, versions.

    Raises:
        KeyError: if no model has the name.

    >>> card("small")["config"]["num_layers"]
    7
    """
    folder = files("llmbook.foundations") / "weights"
    known = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))
    if name not in known:
        raise KeyError(f"no model of the book is called {name!r}; there are {', '.join(known)}")
    return tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf8"))


def load(name: str) -> tuple[Decoder, BytePairTokenizer]:
    """One of the book's own models in float32, whose weights were stored in bf16, and the tokenizer.

    >>> model, tokenizer = load("draft")
    >>> tokenizer.decode(tokenizer.encode("import this"))
    'import this'
    """
    folder = files("llmbook.foundations") / "weights"
    model = Decoder(ModelConfig(**card(name)["config"]))
    model.load_state_dict(read_safetensors((folder / f"{name}.safetensors").read_bytes()))
    model.eval()
    return model, BytePairTokenizer.from_bytes((folder / "tokenizer.json").read_bytes())
