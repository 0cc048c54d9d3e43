"""Conversations as tokens, which of them are learned, and what InstructGPT's stages cost.

Page: foundations/instruction_following. Papers: ouyang2022training (three stages, Table 6 and
appendix C), touvron2023llamab, section 3.1 (only answers are learned). Formats: ChatML
(openai2023chatml), LLaMA 2, Vicuna, Alpaca. The miniature's runs are in `instruction_runs`.
Left out: several examples in one window (training/finetuning/supervised), reward models and PPO
(training/alignment), tools and images in a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from jinja2.sandbox import ImmutableSandboxedEnvironment
from torch import Tensor, nn

from llmbook.foundations.decoder import Decoder
from llmbook.foundations.language_modelling import IGNORED, LanguageModel, generate
from llmbook.foundations.tokenization import BytePairTokenizer

Message = Mapping[str, str]  # a "role" and a "content"

ROLES = ("system", "user", "assistant")
START, END = "<|im_start|>", "<|im_end|>"  # what ChatML sets around a message
PETAFLOPS_DAY = 1e15 * 86400  # FLOPs of a machine of one petaFLOP/s in a day

# Each is a program in Jinja that a model's tokenizer carries, so that all who use the model write
# its conversations as its training did.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama2": (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{% set ns.system = message.content %}"
        "{% elif message.role == 'user' %}<s>[INST] "
        "{% if ns.system %}<<SYS>>\n{{ ns.system }}\n<</SYS>>\n\n{% set ns.system = '' %}{% endif %}"
        "{{ message.content | trim }} [/INST]"
        "{% else %} {{ message.content | trim }} </s>{% endif %}"
        "{% endfor %}"
    ).replace("{% for", "{% set ns = namespace(system='') %}{% for", 1),
    "vicuna": (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ message.content }} "
        "{% elif message.role == 'user' %}USER: {{ message.content }} "
        "{% else %}ASSISTANT: {{ message.content }}</s>{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "{% for message in messages %}"
        "{% if message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n### Response:"
        "{% elif message.role == 'assistant' %}{{ message.content }}</s>{% endif %}"
        "{% endfor %}"
    ),
}


def render(
    messages: Sequence[Message], template: str, *, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation; a template is a program that came with a model, so in a sandbox.

    `add_generation_prompt` ends the text where the assistant's answer is to begin.

    >>> render([{"role": "user", "content": "Import os."}], TEMPLATES["llama2"])
    '<s>[INST] Import os. [/INST]'
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt
    )


def encode_rendered(text: str, tokenizer: BytePairTokenizer) -> list[int]:
    """Tokens of a rendered text: wherever a special token is spelled, it is one.

    So do production tokenizers by default, whoever spelled it: the assistant's frame or the user.
    """
    specials = tokenizer.special_ids
    pattern = "|".join(re.escape(token) for token in specials)
    ids: list[int] = []
    for part in re.split(f"({pattern})", text):
        ids += [specials[part]] if part in specials else tokenizer.encode(part)
    return ids


def encode_chat(
    messages: Sequence[Message],
    tokenizer: BytePairTokenizer,
    *,
    add_generation_prompt: bool = False,
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation in ChatML, and which of them are the assistant's to learn.

    Special tokens are set here and nowhere else: `BytePairTokenizer.encode` finds none in a
    content. Learned are the assistant's words and the token that ends its turn; its header is
    given when it is to answer. Header and content are encoded apart, as they will be then.

    Raises:
        ValueError: if a role is unknown.
    """
    start, end = (tokenizer.special_ids[token] for token in (START, END))
    ids: list[int] = []
    learned: list[bool] = []
    frames = [*messages, *([{"role": "assistant"}] if add_generation_prompt else [])]
    for message in frames:
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"role {role!r} is not one of {', '.join(ROLES)}")
        header = [start, *tokenizer.encode(f"{role}\n")]
        content = [*tokenizer.encode(message["content"]), end] if "content" in message else []
        newline = tokenizer.encode("\n") if content else []
        ids += header + content + newline
        learned += (
            [False] * len(header) + [role == "assistant"] * len(content) + [False] * len(newline)
        )
    return ids, learned


def padded(
    chats: Sequence[tuple[Sequence[int], Sequence[bool]]], *, padding: int
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Tokens and labels of several conversations, filled up on the right.

    What fills up stands after everything and is no label, so no token that counts sees it.
    """
    longest = max(len(ids) for ids, _ in chats)
    tokens = torch.full((len(chats), longest), padding)
    labels = torch.full((len(chats), longest), IGNORED)
    for row, (ids, learned) in enumerate(chats):
        tokens[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(ids)] = torch.where(torch.tensor(learned), torch.tensor(ids), IGNORED)
    return tokens, labels


def conversation_loss(
    model: LanguageModel, tokens: Int[Tensor, "B T"], *, labels: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean over conversations of each one's mean loss: a short answer weighs as much as a long one.

    `language_modelling.next_token_loss` is the mean over all labels of the batch instead.
    """
    logits = model(tokens[:, :-1])  # B T-1 V
    wanted = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
    )  # B T-1
    return (losses.sum(-1) / (wanted != IGNORED).sum(-1)).mean()


@torch.no_grad()
def answered(
    model: LanguageModel, tokens: Int[Tensor, "B T"], *, labels: Int[Tensor, "B T"]
) -> Bool[Tensor, " B"]:
    """Whether greedy decoding would write exactly the labels.

    It would if each label is the likeliest token after the ones before it, so one pass over the
    wanted answers decides what generating them one token at a time would.
    """
    likeliest = model(tokens[:, :-1]).argmax(-1)
    wanted = labels[:, 1:]
    return ((likeliest == wanted) | (wanted == IGNORED)).all(-1)


def with_special_tokens(
    model: Decoder, tokenizer: BytePairTokenizer, names: Sequence[str]
) -> tuple[Decoder, BytePairTokenizer]:
    """The model and tokenizer with more special tokens, each row the mean of the rows there are.

    The model is a copy; all older tokens keep their ids and rows. For a model with a tied table.
    """
    specials = replace(tokenizer, special_tokens=(*tokenizer.special_tokens, *names))
    grown = Decoder(model.config.but(vocab_size=specials.vocab_size))
    weights = dict(model.state_dict())
    table = weights["embedding.weight"]  # V D
    weights["embedding.weight"] = torch.cat((table, table.mean(0).expand(len(names), -1)))
    grown.load_state_dict(weights)
    return grown, specials


def answer(
    model: Decoder,
    tokenizer: BytePairTokenizer,
    prompt: Sequence[int],
    *,
    num_tokens: int = 24,
    stop: str = END,
) -> str:
    """The greedy continuation of a prompt, up to `stop` or, if it never comes, `num_tokens`."""
    ids = generate(model, torch.tensor([list(prompt)]), num_tokens=num_tokens)[0].tolist()
    end = tokenizer.special_ids[stop]
    return tokenizer.decode(
        ids[: ids.index(end)] if end in ids else [*ids, *tokenizer.encode(" ...")]
    )


def petaflops_days(
    num_parameters: float, *, num_tokens: float, flops_per_parameter: float = 6.0
) -> float:
    """Compute of a stage: tokens times FLOPs a parameter (6 to train, 2 to read) times parameters.

    In days of a machine that does 10^15 FLOPs a second; attention is left out, as in 6 P.

    >>> round(petaflops_days(174.6e9, num_tokens=300e9))
    3638
    """
    return num_parameters * num_tokens * flops_per_parameter / PETAFLOPS_DAY
