"""The command `llmbook`: counts from the zoo, and citations by key.

Page: the README and the chapters whose formulas it uses. It answers without torch; pybtex is imported only where
a citation is asked for.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from llmbook import __version__

app = typer.Typer(
    help="Exact counts for large language models, and the book's bibliography.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip


class Format(StrEnum):
    """What a citation can be printed as."""

    BIBTEX = "bibtex"
    RIS = "ris"
    CSL_JSON = "csl-json"
    TEXT = "text"


def fail(message: str) -> NoReturn:
    """One sentence on stderr, exit code 2."""
    typer.echo(f"llmbook: {message}", err=True)
    raise typer.Exit(2)


def version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        typer.echo(f"llmbook {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Exact counts for large language models, and the book's bibliography."""


@app.command()
def params(
    model: Annotated[
        str, typer.Argument(help="A model of the zoo, such as llama-7b or gpt-3-175b.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count a model's parameters to the last one (page foundations/parameters)."""
    from llmbook.costs.parameters import parameter_count
    from llmbook.zoo.catalogue import card

    try:
        found = card(model)
    except KeyError as error:
        fail(error.args[0])
    count = parameter_count(found.config)
    if as_json:
        typer.echo(json.dumps({"model": found.name, **asdict(count)}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{found.name}: parameters",
        caption="Formula: page foundations/parameters",
        title_justify="left",
    )
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    parts = {
        "embedding": count.embedding,
        "output head": count.output_head,
        "non-embedding": count.non_embedding,
    }
    for name, number in {**count.by_module, **parts, "total": count.total}.items():
        if name == "embedding" and name in parts:
            table.add_section()
        table.add_row(name, f"{number:,}", f"{number / count.total:.1%}")
    Console().print(table)


@app.command()
def cite(
    keys: Annotated[list[str], typer.Argument(help="Citation keys, as the book prints them.")],
    format: Annotated[Format, typer.Option(help="How to print the entries.")] = Format.BIBTEX,
) -> None:
    """Print entries of the bibliography by key, in a format that other tools read."""
    from llmbook.bibliography import entry
    from llmbook.bibliography.formats import FORMATS

    try:
        found = [entry(key) for key in keys]
    except KeyError as error:
        fail(error.args[0])
    typer.echo(FORMATS[format.value](found))


@app.command()
def search(
    words: Annotated[
        list[str],
        typer.Argument(help="Words of author, title (Chinese or English), keyword, annotation."),
    ],
) -> None:
    """Find entries of the bibliography; every word must occur."""
    from llmbook import bibliography

    try:
        found = bibliography.search(" ".join(words))
    except ValueError as error:
        fail(str(error))
    for entry in found:
        rendered = f" [{entry.english}]" if entry.english != entry.title else ""
        typer.echo(f"{entry.key}\t{entry.year or 'n.d.'}\t{entry.title}{rendered}")
    if not found:
        fail(f"no entry holds all of {' '.join(words)!r}; try fewer words")
