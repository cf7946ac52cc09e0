"""The weights of a calibration that goes on are in the checkpoint as its finished passes read them.

They are read again to be sure, once. What is intact of the file is looked for by `runs.resume`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reallm_compiler.calibration.events import Checked
from reallm_compiler.checkpoint import Inventory
from reallm_compiler.models.weights import Weights
from reallm_compiler.runs.sources import check_digests
from reallm_compiler.runs.tasks import TaskResult, source_digests


def check_weights(
    inventory: Inventory, done: Mapping[str, TaskResult], emit: Callable[[Checked], None]
) -> None:
    """The weights that finished passes read are in the checkpoint as they were then.

    Raises:
        ResumeError: some have changed; names them.
        SourceError: a shard cannot be read.
    """
    weights = Weights(inventory)
    wanted = source_digests(done.values())
    unread = set(wanted)
    for count, result in enumerate(done.values(), 1):
        for name in unread.intersection(result.source):
            if name in weights.by_name:  # scales are read with their weights
                weights.read(name)
        unread.difference_update(result.source)
        emit(Checked(tasks_done=count, tasks=len(done)))
    check_digests(inventory.path, wanted, weights.digests, "calibration")
