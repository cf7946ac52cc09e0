"""A recipe tried on some matrices: their errors are measured and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.cluster import backend_on, workers_on
from reallm_compiler.execute.options import CompileOptions
from reallm_compiler.execute.preflight import preflight_event
from reallm_compiler.execute.runner import CompileJob
from reallm_compiler.execute.statistics import StatisticsInput
from reallm_compiler.execute.tasks import trial_tasks
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.planning.build import KIND
from reallm_compiler.planning.document import section_blocks, to_document
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.runs.backends import results
from reallm_compiler.runs.counter import TaskCounter
from reallm_compiler.runs.machines import Machines
from reallm_compiler.runs.stop import StopRequest
from reallm_formats import layout


def trial_plan(plan: Plan, pattern: str) -> Plan:
    """The plan of the matrices whose names match a glob.

    A group's shared sections are fitted on the chosen members alone.

    Raises:
        CompileError: none matches.
    """
    chosen = tuple(matrix for matrix in plan.matrices if fnmatchcase(matrix.name, pattern))
    if not chosen:
        raise CompileError(
            f"`--only {pattern}` matches no coded matrix",
            hint=did_you_mean(nearest(pattern, [m.name for m in plan.matrices], 1, cutoff=0.3)),
        )
    return replace(plan_of(chosen, plan.recipe, plan.traces, plan.decoders), folds=plan.folds)


def plan_of(
    matrices: tuple[PlannedMatrix, ...],
    recipe: Mapping[str, Any],
    traces: Mapping[str, tuple[Any, ...]],
    decoders: Mapping[str, Path],
) -> Plan:
    """A plan that codes these matrices and nothing else."""
    return Plan(
        recipe=recipe,
        matrices=matrices,
        tensors=(),
        files=(),
        ties={},
        layout=layout(
            kind=KIND,
            features=[],
            document=to_document(recipe, matrices, {}),
            blocks=section_blocks(matrices, (), ()),
        ),
        traces=traces,
        decoders=decoders,
    )


def work_of(plan: Plan) -> int:
    """A measure of the work of a plan: that of its trainings, or else its weights."""
    totals = plan.budget().totals
    return max(1, totals.training_operations or totals.numel)


def run_trial(
    plan: Plan,
    whole: Plan,
    inventory: Inventory,
    machines: Machines,
    options: CompileOptions,
    stop: StopRequest,
    statistics: StatisticsInput | None = None,
) -> dict[str, float]:
    """Relative errors of the plan's matrices, a part of the `whole` plan's, without a file.

    Raises:
        CompileError, SourceError, CodecError: as `compile_model` does.
    """
    graph = trial_tasks(plan)
    workers = workers_on(machines, plan, options.workers, len(graph))
    counter = TaskCounter(graph, {}, options.on_event)
    options.on_event(
        preflight_event(
            workers,
            machines.title,
            graph,
            counter,
            file_bytes=0,
            disk_bytes=0,
            disk_free_bytes=0,
            operations=whole.budget().totals.training_operations,
            notes=plan.notes,
        )
    )
    job = CompileJob(
        plan=plan,
        inventory=inventory,
        device=machines.device,
        states=None,
        statistics=statistics,
        cache=options.cache_folder,
    )
    errors: dict[str, float] = {}
    backend = backend_on(machines, plan, workers.count, 0, None)
    with closing(results(backend, job, graph, {}, stop, options.on_event)) as running:
        for result in running:
            errors.update(result.errors)
            counter.finished(result)
    return {matrix.name: errors[matrix.name] for matrix in plan.matrices}
