"""The tasks of a plan.

What a share group has in common is learned first, as a task of its own; its matrices then read it
from the reserved file. So each matrix stays a task, and a kill loses at most one per worker. Where
blocks learn (`fit`), a block is a task, and blocks follow each other. A norm that factors are
folded into is a task as well, before the matrices that have these factors.
"""

from __future__ import annotations

from collections.abc import Iterable

from reallm_compiler.planning.fit import FitBlock, fit_blocks, fit_of
from reallm_compiler.planning.folding import folds_of
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_compiler.runs.tasks import Task, TaskGraph
from reallm_formats import names

COPY = "copy:"
"""Key of the task that copies kept tensors and files."""


def group_key(group: str) -> str:
    """Key of the task that learns what a share group has in common."""
    return f"share:{group}"


def matrix_key(name: str) -> str:
    """Key of the task that codes a matrix."""
    return f"matrix:{name}"


def fit_key(number: int) -> str:
    """Key of the task that codes a block whose matrices learn together."""
    return f"fit:{number}"


def fold_key(norm: str) -> str:
    """Key of the task that folds factors into a norm."""
    return f"fold:{norm}"


def folded_norms(plan: Plan) -> list[PlannedTensor]:
    """The norms that factors are folded into."""
    return [fold.norm for fold in plan.folds.values() if fold.norm is not None]


def compile_tasks(plan: Plan, tokens: int = 0) -> TaskGraph:
    """All tasks of a plan.

    A matrix of a share group needs the group's task, and one with folded factors that of the norm
    that has them, and nothing else; where blocks learn, the matrices of a block are one task, which
    needs that of the block before it, and all norms that are folded: it runs the whole model.

    Args:
        plan: the plan.
        tokens: of the text by which blocks learn.
    """
    groups = [group_task(plan, group) for group in plan.groups]
    blocks = fit_blocks(plan)
    inside = {matrix.name for block in blocks for matrix in block.matrices}
    others = [matrix for matrix in plan.matrices if matrix.name not in inside]
    fits = [_fit_task(plan, block, tokens) for block in blocks]
    folds = [_fold_task(norm) for norm in folded_norms(plan)]
    coded = [_matrix_task(matrix, _needs(plan, matrix)) for matrix in others]
    return TaskGraph([*_copy_tasks(plan, blocks), *groups, *fits, *folds, *coded])


def trial_tasks(plan: Plan) -> TaskGraph:
    """The tasks that code the matrices alone, when nothing is stored that they could read."""
    return TaskGraph(_matrix_task(matrix) for matrix in plan.matrices)


def group_task(plan: Plan, group: str) -> Task:
    """The task that learns the shared sections of a group."""
    members = plan.groups[group]
    return Task(
        key=group_key(group),
        title=f"share group {group}",
        sections=tuple(members[0].section_name(spec) for spec in members[0].specs if spec.shared),
        operations=sum(member.layout.cost.group_operations for member in members),
    )


def copied_tensors(plan: Plan, blocks: Iterable[FitBlock]) -> list[PlannedTensor]:
    """The kept tensors that nothing changes: all but the norms that learn with a block, or that
    factors are folded into.
    """
    changed = {tensor.name for block in blocks for tensor in block.norms}
    changed.update(norm.name for norm in folded_norms(plan))
    return [tensor for tensor in plan.tensors if tensor.name not in changed]


def _fold_task(norm: PlannedTensor) -> Task:
    """The task that finds factors and divides a norm by them."""
    sections = (names.tensor_section(norm.name),)
    return Task(key=fold_key(norm.name), title=f"factors of {norm.name}", sections=sections)


def _needs(plan: Plan, matrix: PlannedMatrix) -> tuple[str, ...]:
    """The tasks whose sections a matrix's reads."""
    folds = [one.name for one in folds_of(plan.folds, matrix) if one.norm is not None]
    group = matrix.plan.share
    return (*map(fold_key, folds), *(() if group is None else (group_key(group),)))


def _fit_task(plan: Plan, block: FitBlock, tokens: int) -> Task:
    """The task of a block: forward and back through its weights for each token and epoch."""
    fit = fit_of(plan)
    assert fit is not None  # it has blocks
    groups = dict.fromkeys(m.plan.share for m in block.matrices if m.plan.share is not None)
    before = [fit_key(block.number - 1)] if block.number else []
    folds = [fold_key(norm.name) for norm in folded_norms(plan)]
    numel = sum(matrix.numel for matrix in block.matrices)
    own = [
        matrix.section_name(spec)
        for matrix in block.matrices
        for spec in matrix.specs
        if not spec.shared
    ]
    norms = [names.tensor_section(tensor.name) for tensor in block.norms]
    return Task(
        key=fit_key(block.number),
        title=f"block {block.layer}",
        needs=(*before, *map(group_key, groups), *folds),
        sections=(*own, *norms),
        numel=numel,
        operations=6 * numel * max(1, tokens) * fit.epochs if fit.learn else 0,
    )


def _copy_tasks(plan: Plan, blocks: Iterable[FitBlock]) -> list[Task]:
    sections = [names.file_section(file.path) for file in plan.files]
    sections += [names.tensor_section(tensor.name) for tensor in copied_tensors(plan, blocks)]
    if not sections:
        return []
    return [Task(key=COPY, title="kept tensors and files", sections=tuple(sections))]


def _matrix_task(matrix: PlannedMatrix, needs: tuple[str, ...] = ()) -> Task:
    cost = matrix.layout.cost
    return Task(
        key=matrix_key(matrix.name),
        title=matrix.name,
        needs=needs,
        sections=tuple(matrix.section_name(spec) for spec in matrix.specs if not spec.shared),
        numel=matrix.numel,
        operations=cost.training_operations - cost.group_operations,
    )
