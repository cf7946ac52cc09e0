"""The tasks of a plan.

What a share group has in common is learned first, as a task of its own; its matrices then read it
from the reserved file. So each matrix stays a task, and a kill loses at most one per worker.
"""

from __future__ import annotations

from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
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


def compile_tasks(plan: Plan) -> TaskGraph:
    """All tasks of a plan; a matrix of a share group needs the group's task, and nothing else."""
    groups = [group_task(plan, group) for group in plan.groups]
    return TaskGraph([*_copy_tasks(plan), *groups, *map(_matrix_task, plan.matrices)])


def trial_tasks(plan: Plan) -> TaskGraph:
    """The tasks that code the matrices alone, when nothing is stored that they could read."""
    return TaskGraph(_matrix_task(matrix, needs=False) for matrix in plan.matrices)


def group_task(plan: Plan, group: str) -> Task:
    """The task that learns the shared sections of a group."""
    members = plan.groups[group]
    return Task(
        key=group_key(group),
        title=f"share group {group}",
        sections=tuple(members[0].section_name(spec) for spec in members[0].specs if spec.shared),
        operations=sum(member.layout.cost.group_operations for member in members),
    )


def _copy_tasks(plan: Plan) -> list[Task]:
    sections = [names.file_section(file.path) for file in plan.files]
    sections += [names.tensor_section(tensor.name) for tensor in plan.tensors]
    if not sections:
        return []
    return [Task(key=COPY, title="kept tensors and files", sections=tuple(sections))]


def _matrix_task(matrix: PlannedMatrix, *, needs: bool = True) -> Task:
    group, cost = matrix.plan.share, matrix.layout.cost
    return Task(
        key=matrix_key(matrix.name),
        title=matrix.name,
        needs=(group_key(group),) if group is not None and needs else (),
        sections=tuple(matrix.section_name(spec) for spec in matrix.specs if not spec.shared),
        numel=matrix.numel,
        operations=cost.training_operations - cost.group_operations,
    )
