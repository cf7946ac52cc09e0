"""The weights of a compile that goes on are in the checkpoint as its finished tasks read them.

They are read again to be sure, once. What is intact of the file is looked for by `runs.resume`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import ResumeError, SourceError
from reallm_compiler.execute.events import Checked
from reallm_compiler.execute.tasks import COPY, group_key, matrix_key
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.model import Plan
from reallm_compiler.runs.tasks import TaskGraph, TaskResult

SHOWN = 3
"""Names of changed tensors that a message shows."""

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
            check_digests(inventory, wanted, seen, "compile")
        emit(Checked(tasks_done=count, tasks=len(finished)))


def checked_sources(
    results: Iterable[TaskResult], done: Mapping[str, TaskResult], folder: str
) -> Iterator[TaskResult]:
    """The results, as long as no tensor is another than when a task before has read it.

    Args:
        results: as tasks end.
        done: what was finished before.
        folder: the checkpoint, for the message.

    Raises:
        SourceError: a tensor was read twice and is not the same; names it.
    """
    known = {name: hexes for result in done.values() for name, hexes in result.source.items()}
    for result in results:
        for name, hexes in result.source.items():
            if known.setdefault(name, hexes) != hexes:
                raise SourceError(
                    f"{name.partition('#')[0]} has changed while it was compiled",
                    location=folder,
                    note="going on would mix two models",
                    hint="leave the checkpoint alone and start over with `--resume never`",
                )
        yield result


def parts_of(plan: Plan) -> dict[str, list[Part]]:
    """The tensors that each task reads, or parts of 3-D ones, by the task's key."""
    parts: dict[str, list[Part]] = {COPY: [(tensor.name, None) for tensor in plan.tensors]}
    for group, members in plan.groups.items():
        parts[group_key(group)] = [(matrix.tensor, matrix.index) for matrix in members]
    for matrix in plan.matrices:
        parts[matrix_key(matrix.name)] = [(matrix.tensor, matrix.index)]
    return parts


def check_digests(
    inventory: Inventory, wanted: Mapping[str, str], found: Mapping[str, str], run: str
) -> None:
    """Weights have the digests that an interrupted run read.

    Args:
        inventory: the checkpoint.
        wanted, found: digests then and now, by tensor or `tensor#offset`.
        run: what was interrupted, in a word.

    Raises:
        ResumeError: some differ; names them.
    """
    changed = sorted(
        {name.partition("#")[0] for name, digest in wanted.items() if found.get(name) != digest}
    )
    if not changed:
        return
    names = ", ".join(changed[:SHOWN])
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    raise ResumeError(
        f"weights have changed since the interrupted {run} of this output read them: {names}{more}",
        location=inventory.path,
        note="going on would mix two models",
        hint="restore what has changed, or start over with `--resume never`",
    )
