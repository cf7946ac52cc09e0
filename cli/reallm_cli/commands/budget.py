"""`reallm budget`: the exact size of an archive, before any work or beside what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from reallm_cli.commands.budget_time import Timing, show_time, time_options
from reallm_cli.context_view import context_budget, show_context
from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import CommandLineError, check_recipe_path
from reallm_cli.opened import is_archive, open_facts
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_cli.views import differences, show_sizes
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.numbers import counted
from reallm_compiler.planning.gc_paused import gc_paused
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.opened import Opened, Stored


@click.command(
    "budget",
    cls=ExampleCommand,
    short_help="Show the exact size, before any work is done.",
    examples=[
        (
            "reallm budget reallm-2bit --model path/to/config.json",
            "a shipped recipe on a model of which only the config is here",
        ),
        ("reallm budget mine.yaml --json", "the same for scripts; `mine.yaml` names its model"),
        (
            "reallm budget mine.yaml --explain model.layers.0.self_attn.q_proj",
            "which line of the recipe set which field of that matrix",
        ),
        (
            "reallm budget kv-4bit --model path/to/config.json --context 8192",
            "also the keys and values of so many tokens",
        ),
        ("reallm budget model.reallm", "planned against stored bytes of a finished archive"),
        (
            "reallm budget reallm-2bit --model config.json --time --nodes 1 --nodes 8",
            "hours, memory, bytes moved and money of every step, on one node and on eight",
        ),
    ],
)
@click.argument("source", metavar="RECIPE_OR_ARCHIVE")
@click.option(
    "--model",
    metavar="MODEL",
    help="Checkpoint folder, bare config.json, `shapes` file or hub id. With an archive: plan "
    "its recipe on this model.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("--explain", metavar="NAME", help="Show which rule set which field of one matrix.")
@time_options
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also show the keys and values of N tokens, by the recipe's `kv_cache`.",
)
@click.pass_obj
@gc_paused()
def budget(
    terminal: Terminal,
    source: str,
    model: str | None,
    as_json: bool,
    explain: str | None,
    timing: Timing,
    context: int | None,
) -> int:
    """Show the exact size of an archive, to the byte, before any work.

    Three numbers stand together: `paper bits` count as the paper's tables do, `exact bits` count
    everything that is stored for a matrix, and the file's bytes count everything.
    """
    opened = open_facts(source) if is_archive(source) else None
    plan = _plan(source, model, opened)
    if explain is not None:
        return _explain(terminal, plan, explain, as_json=as_json, archive=opened)
    if timing.wanted:
        return show_time(terminal, plan, _config(source, model, opened), timing, as_json=as_json)
    sizes = plan.budget()
    cache = None
    if context is not None:
        label = model or source
        cache = context_budget(plan.recipe, _config(source, model, opened), label, context)
    stored = opened.stored if opened is not None and _same_matrices(plan, opened.plan) else None
    if as_json:
        payload = sizes.to_json()
        if stored is not None:
            payload["stored"] = stored_json(stored)
        if cache is not None:
            payload["kv_cache"] = cache.to_json()
        terminal.json(payload)
    else:
        show_sizes(terminal, plan, sizes, stored=stored)
        if stored is not None:
            found = differences(sizes, stored)
            for line in found or ["planned and stored bytes agree"]:
                terminal.data(line)
        if cache is not None:
            show_context(terminal, cache)
    return ExitCode.OK


def stored_json(stored: Stored) -> dict[str, Any]:
    """The stored bytes under the keys of `totals`."""
    return {
        "coded_bytes": stored.coded,
        "kept_bytes": stored.kept,
        "header_bytes": stored.header,
        "manifest_bytes": stored.manifest,
        "padding_bytes": stored.padding,
        "other_bytes": stored.other,
        "file_bytes": stored.file,
    }


def _plan(source: str, model: str | None, opened: Opened | None) -> Plan:
    from reallm_compiler.planning.build import plan as build_plan

    if opened is None:
        check_recipe_path(source)
        return build_plan(source, model=model)
    if model is None:
        return opened.plan
    from reallm_compiler.recipe import load_recipe

    return build_plan(load_recipe(opened.plan.recipe), model=model)


def _config(source: str, model: str | None, opened: Opened | None) -> Mapping[str, Any] | None:
    """The config of the model of a plan; None where it has none."""
    if opened is not None and model is None:
        from reallm_compiler.reader.archive import open_archive
        from reallm_compiler.reader.huggingface import archive_config

        with open_archive(opened.path, allow_cost=True) as archive:
            return archive_config(archive)
    from reallm_compiler.planning.build import open_model
    from reallm_compiler.recipe import load_recipe

    recipe = load_recipe(source if opened is None else opened.plan.recipe)
    return open_model(recipe, model, weights=False).config


def _same_matrices(plan: Plan, stored: Plan) -> bool:
    """Whether planned and stored bytes can stand side by side."""
    return [(matrix.name, matrix.shape) for matrix in plan.matrices] == [
        (matrix.name, matrix.shape) for matrix in stored.matrices
    ]


def _explain(
    terminal: Terminal, plan: Plan, name: str, *, as_json: bool, archive: Opened | None
) -> int:
    if archive is not None and not plan.traces:
        raise CommandLineError(
            "an archive keeps its recipe, but not the lines that it was written on",
            hint=f"`reallm inspect {archive.path} {name}` shows the matrix's plan; to see which "
            "rule set it, give the recipe's file",
        )
    matrix = name.removesuffix(".weight")
    if matrix not in plan.traces:
        raise CommandLineError(
            f"the model has no matrix `{name}`",
            hint=did_you_mean(nearest(matrix, plan.traces))
            or "`reallm budget ... --json` lists all names",
        )
    trace = plan.traces[matrix]
    coded = plan.by_name.get(matrix)
    transposed = coded is not None and coded.transposed
    if as_json:
        fields = [
            {"path": step.path, "value": step.value, "location": str(step.location)}
            for step in trace
        ]
        terminal.json({"name": matrix, "transposed": transposed, "fields": fields})
        return ExitCode.OK
    kept = " (kept, not coded)" if coded is None else ""
    sheet = Sheet(
        columns=["<field", "<value", "<set by"],
        rows=[(step.path, _value(step.value), str(step.location)) for step in trace],
    )
    show_sheet(terminal, sheet, title=f"{matrix}{kept}")
    if coded is not None and coded.plan.share is not None:
        others = len(plan.groups[coded.plan.share]) - 1
        terminal.data(
            f"group `{coded.plan.share}`: shared with "
            f"{counted(others, 'other matrix', 'other matrices')}"
        )
    if coded is not None and transposed:
        p, q = coded.shape
        terminal.data(f"stored transposed in the checkpoint: {q} x {p} there, {p} x {q} here")
    return ExitCode.OK


def _value(value: object) -> str:
    from reallm_compiler.recipe.plain_yaml import to_yaml

    return to_yaml(value)
