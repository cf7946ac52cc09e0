"""The weights of a compile that goes on are in the checkpoint as its finished tasks read them.

They are read again to be sure, once. What is intact of the file is looked for by `runs.resume`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.execute.events import Checked
from reallm_compiler.execute.tasks import (
    COPY,
    copied_tensors,
    fit_key,
    fold_key,
    group_key,
    matrix_key,
)
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.fit import fit_blocks
from reallm_compiler.planning.folding import Fold, folds_of
from reallm_compiler.planning.model import Plan
from reallm_compiler.runs.sources import check_digests
from reallm_compiler.runs.tasks import TaskGraph, TaskResult

Part = tuple[str, int | None]
"""A tensor, or a part of a 3-D one by its index."""


def check_weights(
    plan: Plan,
    inventory: Inventory,
    graph: TaskGraph,
    done: Mapping[str, TaskResult],
    emit: Callable[[Checked], None],
) -> None:
    """The weights that finished tasks read are in the checkpoint as they were then.

    Raises:
        ResumeError: some have changed; names them.
        SourceError: a shard cannot be read.
    """
    weights = Weights(inventory)
    parts = parts_of(plan)
    seen: dict[str, str] = {}
    finished = [task.key for task in graph.tasks if task.key in done]
    for count, key in enumerate(finished, 1):
        wanted = done[key].source
        if not wanted.items() <= seen.items():
            for tensor, index in parts[key]:
                weights.read(tensor, index)
            seen |= weights.take_digests()
            check_digests(inventory.path, wanted, seen, "compile")
        emit(Checked(tasks_done=count, tasks=len(finished)))


def parts_of(plan: Plan) -> dict[str, list[Part]]:
    """The tensors that each task reads, or parts of 3-D ones, by the task's key."""
    blocks = fit_blocks(plan)
    copied = copied_tensors(plan, blocks)
    parts: dict[str, list[Part]] = {COPY: [(tensor.name, None) for tensor in copied]}
    biases = {fold.activation.producer.bias: fold for fold in plan.folds.values()}
    divided = [biases[tensor.name] for tensor in copied if tensor.name in biases]
    parts[COPY] += [part for fold in divided for part in _of_fold(fold)]
    folded = [part for fold in plan.folds.values() for part in _of_fold(fold)]
    for block in blocks:  # which run the whole model, with all factors that are folded into it
        whole: list[Part] = [(tensor.name, None) for tensor in block.norms] + folded
        parts[fit_key(block.number)] = whole + [(m.tensor, m.index) for m in block.matrices]
    for group, members in plan.groups.items():
        parts[group_key(group)] = [(matrix.tensor, matrix.index) for matrix in members]
    for matrix in plan.matrices:
        folds = folds_of(plan.folds, matrix)
        own: list[Part] = [(matrix.tensor, matrix.index)]
        parts[matrix_key(matrix.name)] = own + [part for fold in folds for part in _of_fold(fold)]
    for fold in plan.folds.values():
        parts[fold_key(fold.name)] = _of_fold(fold)
    return parts


def _of_fold(fold: Fold) -> list[Part]:
    """What factors are found from: the matrices, and the norm."""
    read: list[Part] = [(matrix.tensor, matrix.index) for matrix in fold.matrices]
    return [*read, *(() if fold.norm is None else ((fold.norm.name, None),))]
