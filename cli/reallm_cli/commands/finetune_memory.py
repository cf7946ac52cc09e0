"""`reallm finetune --dry-run`: the memory that a run takes, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reallm_cli.exit_codes import ExitCode
from reallm_cli.mistakes import CommandLineError
from reallm_cli.opened import is_archive
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import grouped, size_text

if TYPE_CHECKING:
    from reallm_compiler.finetune import MemoryEstimate

_TITLES = {"block": "block by block", "e2e": "end to end"}


def dry_run_memory(
    terminal: Terminal,
    archive: str,
    model: str,
    given: Mapping[str, Any],
    *,
    packed: bool,
    as_json: bool,
) -> int:
    """Show the memory that a run would take, from shapes alone.

    Args:
        terminal: where.
        archive: an archive, or a recipe.
        model: the checkpoint, or its config.
        given: settings.
        packed: leave the coded parts packed.
        as_json: as JSON.
    """
    from reallm_compiler.checkpoint import open_source
    from reallm_compiler.finetune import estimate
    from reallm_compiler.finetune.options import options_from
    from reallm_compiler.planning.build import build, open_model
    from reallm_compiler.recipe import load_recipe

    inventory = open_source(model, weights=False)
    if inventory.config is None:
        raise CommandLineError("this model has no config, so its blocks are unknown")
    if is_archive(archive):
        from reallm_compiler.reader.archive import open_archive

        with open_archive(archive, allow_cost=True) as opened:
            plan = opened.plan
    else:
        recipe = load_recipe(archive)
        plan = build(recipe, open_model(recipe, inventory))
    found = estimate(plan, inventory.config, options_from(given, plan.recipe), packed=packed)
    if as_json:
        terminal.json(found.to_json())
    else:
        _show(terminal, found)
    return ExitCode.OK


def _show(terminal: Terminal, memory: MemoryEstimate) -> None:
    """The table of what takes how much memory in each stage."""
    used = [name for terms in memory.stages.values() for name, size in terms.items() if size]
    names = list(dict.fromkeys(used))
    stages = list(memory.stages)
    rows = [
        [name, *(_bytes(memory.stages[stage].get(name, 0)) for stage in stages)] for name in names
    ]
    total = ["all", *(size_text(memory.total(stage)) for stage in stages)]
    columns = ["<memory", *(_TITLES[stage] for stage in stages)]
    show_sheet(terminal, Sheet(columns=columns, rows=[*rows], total=total))
    if memory.host:
        terminal.data(f"inputs and targets of blocks: {size_text(memory.host)} of host memory")
    terminal.data(
        f"{grouped(memory.tuned)} tuned parameters, sequences of {grouped(memory.window)} tokens; "
        "activations are an estimate, all else is counted"
    )


def memory_text(memory: MemoryEstimate) -> str:
    """What a run takes, and beside what it stands."""
    from reallm_compiler.finetune.memory import LIBRARIES_BYTES

    host = f" and {size_text(memory.host)} of the host" if memory.host else ""
    return (
        f"about {size_text(memory.peak)}{host}, beside {size_text(LIBRARIES_BYTES)} of Python and "
        "its libraries and what was freed and is kept by the allocator"
    )


def _bytes(size: int) -> str:
    return size_text(size) if size else ""
