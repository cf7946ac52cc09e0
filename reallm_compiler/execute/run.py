"""The compile: recipe -> plan -> reserved file -> filled sections -> one verified archive.

Steps: (1) plan; (2) device; then, for an archive, those of `archive`, or for a trial, of `trial`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import CompileError, OutputError, SourceError
from reallm_compiler.execute.archive import compile_archive
from reallm_compiler.execute.events import CompileReport, Event, Preflight, TaskDone
from reallm_compiler.execute.fit.text import check_text
from reallm_compiler.execute.options import CompileOptions, OnEvent, ignore_event
from reallm_compiler.execute.preflight import DEVICE_TYPES
from reallm_compiler.execute.statistics import check_statistics
from reallm_compiler.execute.trial import run_trial, trial_plan, work_of
from reallm_compiler.models.sequences import as_paths
from reallm_compiler.models.weights import check_duplicates
from reallm_compiler.planning.build import build, open_model
from reallm_compiler.planning.fit import fit_of
from reallm_compiler.planning.model import Plan
from reallm_compiler.progress import Progress, progress_callback
from reallm_compiler.publish import refuse_inputs
from reallm_compiler.recipe import Recipe, load_recipe
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.machines import Machines
from reallm_compiler.runs.open_machines import open_machines
from reallm_compiler.runs.output import Output
from reallm_compiler.runs.stop import StopRequest, catch_signals


def compile_model(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    model: str | os.PathLike[str] | Inventory | None = None,
    output: str | os.PathLike[str] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    text: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    device: str = "auto",
    workers: int | None = None,
    cluster: ClusterOptions | None = None,
    only: str | None = None,
    resume: str = "auto",
    force: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
) -> CompileReport:
    """Compile a checkpoint into an archive.

    Args:
        recipe: a shipped recipe's name, a file, plain data, or a loaded recipe.
        model: the checkpoint; the recipe's own `model` when None.
        output: the archive; the recipe's own `output` when None.
        statistics: what `calibrate` measured on the checkpoint, for a recipe that needs it.
        text: UTF-8 files, for a recipe by which blocks learn (`fit`).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that encode; chosen by size, cores and memory when None.
        cluster: a Ray cluster that encodes; this machine when None.
        only: a glob on matrix names: code those, report their errors, write nothing.
        resume: `auto` goes on where an interrupted run stood, `required` refuses to start
            afresh, `never` starts over.
        force: overwrite an existing archive when the new one is finished.
        cache: a folder: matrices that were coded before by the same plan and statistics are taken
            from it, and others are kept in it. The bytes are the same without one.
        progress: see `reallm_compiler.progress`; counts steps (matrices, and some for the rest).
            True when None, or False where `on_event` is given.
        on_event: is called with the preflight and with each finished task.

    Raises:
        ReallmError: one of its kinds (RecipeError, SourceError, OutputError, CompileError,
            CalibrateError, ResumeError, CodecError), or `Interrupted` after SIGINT or SIGTERM; see
            `reallm_compiler.errors`.
    """
    options = CompileOptions(
        recipe=recipe,
        model=model,
        output=output,
        statistics=statistics,
        text=text,
        device=device,
        workers=workers,
        cluster=cluster,
        only=only,
        resume=resume,
        force=force,
        cache=cache,
        on_event=_counted(on_event is None if progress is None else progress, on_event),
    )
    with catch_signals() as stop, _corrected_hints(resume):
        try:
            with stop.at_once():
                return _compile(options, stop)
        except KeyboardInterrupt:
            raise stop.interrupted() from None


def _counted(progress: Progress, on_event: OnEvent | None) -> OnEvent:
    """What is called with every event, and reports the tasks among them as progress."""
    count = progress_callback(progress, "compile", "steps")
    forward = on_event or ignore_event
    tasks = 0

    def emit(event: Event) -> None:
        nonlocal tasks
        if isinstance(event, Preflight):
            tasks = event.tasks
            count(event.tasks_done, tasks)
        elif isinstance(event, TaskDone):
            count(event.tasks_done, tasks)
        forward(event)

    return emit


@contextmanager
def _corrected_hints(resume: str) -> Iterator[None]:
    """Hints on how to go on, corrected for a run that was to start over."""
    try:
        yield
    except CompileError as error:
        if resume == "never" and error.hint is not None:
            again = "run the same command again"
            error.hint = error.hint.replace(again, f"{again} without `--resume never`")
        raise


def _compile(options: CompileOptions, stop: StopRequest) -> CompileReport:
    began = time.monotonic()
    recipe = options.recipe if isinstance(options.recipe, Recipe) else load_recipe(options.recipe)
    inventory = open_model(recipe, options.model)
    plan = build(recipe, inventory)
    if not inventory.complete:
        raise SourceError(
            "this model has no weights to compile",
            location=str(inventory.path),
            hint="`reallm budget` works on a bare config; give `compile` a folder with weights",
        )
    check_duplicates(inventory)
    with open_machines(
        options.device, CompileError, types=DEVICE_TYPES, cluster=options.cluster
    ) as machines:
        return _compile_on(machines, plan, recipe, inventory, options, stop, began)


def _compile_on(
    machines: Machines,
    plan: Plan,
    recipe: Recipe,
    inventory: Inventory,
    options: CompileOptions,
    stop: StopRequest,
    began: float,
) -> CompileReport:
    if options.only is not None:
        if fit_of(plan) is not None:
            raise CompileError(
                "a recipe by which blocks learn cannot be tried on single matrices",
                hint="leave out `--only`, or try a recipe without `fit`",
            )
        part = trial_plan(plan, options.only)
        measured = check_statistics(part, inventory, options.statistics)
        errors = run_trial(part, plan, inventory, machines, options, stop, measured)
        seconds = time.monotonic() - began
        return CompileReport(
            path=None,
            budget=part.budget(),
            errors=errors,
            seconds=seconds,
            tasks_resumed=0,
            whole_seconds=seconds * work_of(plan) / work_of(part),
        )
    named = options.output if options.output is not None else recipe.output
    if named is None:
        raise OutputError(
            "no output is named",
            hint="add `output: NAME.reallm` to the recipe, or give `-o NAME.reallm`",
        )
    output = Output(Path(named).absolute())
    refuse_inputs(
        output.path,
        inventory.path or None,
        options.recipe_file,
        options.statistics,
        *as_paths(options.text),
    )
    measured = check_statistics(plan, inventory, options.statistics)
    text = check_text(plan, inventory, options.text)
    errors, resumed = compile_archive(
        plan, inventory, output, machines, options, stop, measured, text
    )
    return CompileReport(
        path=str(output.path),
        budget=plan.budget(),
        errors=errors,
        seconds=time.monotonic() - began,
        tasks_resumed=resumed,
    )
