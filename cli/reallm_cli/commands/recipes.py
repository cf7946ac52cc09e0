"""`reallm recipes`: what is shipped, and the schema of the recipe language."""

from __future__ import annotations

import re
from typing import Any

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand, ExampleGroup
from reallm_cli.mistakes import CommandLineError
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.hints import did_you_mean, nearest

_PART = "***"
_ALONE = [("reallm recipes", "the same as `reallm recipes list`")]
_LIST = [("reallm recipes list", "names, purposes and expected bits")]
_SHOW = [
    ("reallm recipes show reallm-2bit", "print the recipe's YAML"),
    ("reallm recipes show reallm-2bit > mine.yaml", "a recipe of your own to start from"),
]
_SCHEMA = [
    ("reallm recipes schema > recipe.schema.json", "for an editor that completes and checks YAML")
]


@click.group(
    "recipes",
    cls=ExampleGroup,
    invoke_without_command=True,
    examples=[*_ALONE, *_LIST, *_SHOW, *_SCHEMA],
)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List and show the shipped recipes."""
    if context.invoked_subcommand is None:
        context.invoke(list_recipes)


@recipes.command("list", cls=ExampleCommand, examples=_LIST)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.pass_obj
def list_recipes(terminal: Terminal, as_json: bool) -> int:
    """List the shipped recipes, the best first: expected bits, measured loss, purpose."""
    from reallm_compiler.recipe import load_recipe
    from reallm_compiler.recipe.shipped import (
        BEST,
        DATA_FREE,
        head_comment,
        list_caches,
        list_choices,
        list_shipped,
        measured_kl,
        read_shipped,
    )

    rows: list[dict[str, Any]] = []
    names = sorted(list_shipped(), key=[*BEST, *DATA_FREE, *list_shipped()].index)
    for name in [*names, *list_choices(), *list_caches()]:
        comment = head_comment(read_shipped(name))
        kl, page = measured_kl(name)
        rows.append(
            {
                "name": name,
                "bits": expected_bits(comment),
                "kl": kl,
                "measured": page,
                "best": name in (*BEST, *DATA_FREE),
                "candidates": name in list_choices(),
                "kv_cache": name in list_caches(),
                "statistics": load_recipe(name).statistics,
                "purpose": purpose(comment),
            }
        )
    rows.sort(key=lambda row: (not row["best"], row["statistics"] != "required"))  # is stable
    if as_json:
        terminal.json(rows)
        return ExitCode.OK
    for title, best, statistics in (
        (
            "best at their size: `reallm calibrate` first, then compile with `--stats`",
            True,
            "required",
        ),
        ("best without data", True, "none"),
        ("other methods, to compare with: `reallm calibrate` first", False, "required"),
        ("other methods without statistics: to compare with, or to tune", False, "none"),
    ):
        sheet = Sheet(
            columns=["<recipe", "exact bits*", "KL**", "<purpose"],
            rows=[
                (row["name"], row["bits"], row["kl"] + _mark(row["measured"]), row["purpose"])
                for row in rows
                if (row["best"], row["statistics"]) == (best, statistics)
                and not (row["candidates"] or row["kv_cache"])
            ],
            wrap="<purpose",
        )
        show_sheet(terminal, sheet, title=title)
        terminal.data()
    for title, key in (
        ("to choose from to a number of bytes: `reallm allocate`", "candidates"),
        ("of keys and values alone: `reallm eval --kv-cache RECIPE`", "kv_cache"),
    ):
        sheet = Sheet(
            columns=["<recipe", "<purpose"],
            rows=[(row["name"], row["purpose"]) for row in rows if row[key]],
            wrap="<purpose",
        )
        show_sheet(terminal, sheet, title=title)
        terminal.data()
    terminal.data("* at 4096 x 4096; `reallm budget RECIPE --model MODEL` has yours")
    terminal.data(
        "** nats from the original for each token, on a model of 11 million weights; smaller is "
        "better; docs/results.md"
    )
    terminal.data(
        f"{_PART} on the first sixth of that text, where figures are about a tenth higher; "
        "docs/methods.md"
    )
    return ExitCode.OK


def _mark(page: str) -> str:
    """What marks a figure that was measured on less text than those of docs/results.md."""
    return _PART if page == "docs/methods.md" else ""


@recipes.command("show", cls=ExampleCommand, examples=_SHOW)
@click.argument("name", metavar="NAME")
@click.pass_obj
def show_recipe(terminal: Terminal, name: str) -> int:
    """Print a shipped recipe as it is written."""
    from reallm_compiler.recipe.shipped import list_all, read_shipped

    known = list_all()
    if name not in known:
        raise CommandLineError(
            f"there is no shipped recipe `{name}`",
            hint=did_you_mean(nearest(name, known)) or "`reallm recipes list` names them all",
        )
    # Past rich: the text is data, to be redirected into a file as it is.
    terminal.out.file.write(read_shipped(name))
    return ExitCode.OK


@recipes.command("schema", cls=ExampleCommand, examples=_SCHEMA)
@click.pass_obj
def show_schema(terminal: Terminal) -> int:
    """Print the JSON Schema of the recipe language."""
    from reallm_compiler.recipe import json_schema

    terminal.json(json_schema())
    return ExitCode.OK


def purpose(comment: str) -> str:
    """The first sentence of a head comment."""
    first = " ".join(comment.split("\n\n")[0].split())
    return re.split(r"(?<=[^.])\.\s", first)[0].removesuffix(".")


def expected_bits(comment: str) -> str:
    """The exact bits that a head comment promises, or nothing when it does not."""
    found = re.search(r"exact(?: bits)?\D{0,20}?(\d+\.\d+)", comment)
    return found[1] if found else ""
