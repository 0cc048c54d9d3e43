"""Systems built of parts that others trained: what each part is, how large, and when it learns.

Pages: foundations/multimodal and zoo/vision_language. A system is a file in `zoo/systems`: its parts,
whose sizes are computed from configurations, and the stages of its training, each with the parts
that it trains; all others are frozen in it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from llmbook.costs.multimodal import (
    QFormerConfig,
    VisionConfig,
    block_parameters,
    linear_parameters,
    qformer_parameters,
    vision_parameters,
)
from llmbook.costs.parameters import parameter_count
from llmbook.zoo.catalogue import config

Role = Literal["encoder", "connector", "decoder"]


@dataclass(frozen=True)
class Part:
    """One part of a system, with the key and place of the text that its size rests on."""

    name: str
    role: Role
    parameters: int
    source: str
    where: str


@dataclass(frozen=True)
class Stage:
    """One stage of training, and the names of the parts that learn in it."""

    name: str
    trained: tuple[str, ...]
    data: str
    where: str


@dataclass(frozen=True)
class System:
    """A model of parts: who released it and when, and which text says what is frozen."""

    name: str
    organisation: str
    released: date
    source: str
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    image_tokens: int = 0  # places that one image takes in the decoder's context

    @property
    def parameters(self) -> int:
        """Parameters of all parts."""
        return sum(part.parameters for part in self.parts)

    def trained(self, stage: int) -> int:
        """Parameters that learn in a stage, counted from 0."""
        learns = self.stages[stage].trained
        return sum(part.parameters for part in self.parts if part.name in learns)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parts that learn in no stage."""
        learns = {name for stage in self.stages for name in stage.trained}
        return tuple(part.name for part in self.parts if part.name not in learns)


def size(fields: dict[str, Any]) -> int:
    """Parameters of a part, from the one field that describes it.

    `decoder` names a card of the zoo, `linear` gives inputs and outputs, `vision` and `qformer`
    are configurations, `vectors` gives number and width of learned vectors, `blocks` number and
    width of a transformer's blocks (with F = 4 D, and nothing else), `counted` a number that none
    of these describes.

    Raises:
        ValueError: if there is not exactly one of these fields.

    >>> size({"linear": [1024, 4096]})
    4198400
    """
    sizes: dict[str, Callable[[Any], int]] = {
        "decoder": lambda name: parameter_count(config(name)).total,
        "linear": lambda shape: linear_parameters(*shape),
        "vision": lambda given: vision_parameters(VisionConfig(**given)),
        "qformer": lambda given: qformer_parameters(QFormerConfig(**given)),
        "vectors": lambda shape: shape[0] * shape[1],
        "blocks": lambda shape: shape[0] * blocks_of_width(shape[1]),
        "counted": int,
    }
    given = [field for field in fields if field in sizes]
    if len(given) != 1:
        raise ValueError(
            f"a part of fields {', '.join(fields)} has {len(given)} of {', '.join(sizes)}: "
            "one gives its size"
        )
    return sizes[given[0]](fields[given[0]])


def blocks_of_width(hidden_size: int) -> int:
    """Parameters of one transformer block with F = 4 D.

    >>> 32 * blocks_of_width(1280)  # ImageBind's image encoder, which the paper gives as 630M
    629678080
    """
    return block_parameters(
        VisionConfig(
            image_size=1, patch_size=1, hidden_size=hidden_size, num_layers=1,
            intermediate_size=4 * hidden_size,
        )
    )  # fmt: skip


@cache
def systems() -> dict[str, System]:
    """Every system by name, in the order of release.

    Raises:
        ValueError: if a stage trains a part that the system does not have, two parts bear one
            name, or a role is unknown.

    >>> systems()["minigpt-4-7b"].trained(0)
    3149824
    """
    found = []
    for file in files("llmbook.zoo").joinpath("systems").iterdir():
        if file.name.endswith(".toml"):
            found.append(system(tomllib.loads(file.read_text(encoding="utf8"))))
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.released)}


def system(fields: dict[str, Any]) -> System:
    """One system from the tables of its file.

    Raises:
        ValueError: as `systems`.
    """
    known = [part["name"] for part in fields["part"]]
    for part in fields["part"]:
        if part["role"] not in get_args(Role):
            raise ValueError(f"role {part['role']!r} is none of {', '.join(get_args(Role))}")
        if known.count(part["name"]) > 1:
            raise ValueError(f"{fields['name']} has two parts called {part['name']!r}")
    parts = tuple(
        Part(part["name"], part["role"], size(part), part["source"], part["where"])
        for part in fields["part"]
    )
    stages = tuple(
        Stage(stage["name"], tuple(stage["trained"]), stage["data"], stage["where"])
        for stage in fields["stage"]
    )
    for stage in stages:
        for name in stage.trained:
            if name not in known:
                raise ValueError(
                    f"{fields['name']} trains {name!r}, which is none of {', '.join(known)}"
                )
    return System(
        fields["name"], fields["organisation"], fields["released"], fields["source"], parts,
        stages, fields.get("image_tokens", 0),
    )  # fmt: skip
