"""Trainings under way: their progress, their saved state, and stopping in the midst of one.

A matrix whose autoencoder is trained may take hours, so its task can be left and taken up again.
The state stands beside the unfinished archive, in OUT.partial.TASK.state (safetensors, no pickle):
replaced in one step at least once a minute and when a stop is asked for, taken only by the same
task of the same run with the same weights, and removed when the task is in the journal. Losing it
costs time and changes no byte.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reallm_compiler.codecs.callback import State
from reallm_compiler.errors import CompileError
from reallm_compiler.runs.events import Training
from reallm_compiler.runs.job import Context
from reallm_compiler.runs.state import NEW, load_state, remove_state, save_state
from reallm_compiler.runs.stop import Interrupted
from reallm_compiler.runs.tasks import Task

SAVE_SECONDS = 60.0
"""Seconds after which a state is saved at the end of an epoch."""

EMIT_SECONDS = 1.0
"""Seconds between two events of one training."""

SUFFIX = ".state"


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The states of the trainings of one run.

    Attributes:
        partial: the unfinished archive that they stand beside.
        run: digest of the run's identity: states of another run are not taken.
    """

    partial: Path
    run: str

    def path(self, task: str) -> Path:
        """Where the state of the task of this key stands."""
        name = hashlib.sha256(task.encode()).hexdigest()[:16]
        return self.partial.with_name(f"{self.partial.name}.{name}{SUFFIX}")

    def load(self, task: str, source: str) -> State | None:
        """The task's state from an interrupted run; a damaged or foreign one is no state.

        Args:
            task: its key.
            source: digest of the weights that it has read.
        """
        path = self.path(task)
        if not path.exists():
            return None
        try:
            identity, tensors = load_state(path)
        except ValueError:
            return None
        return tensors if identity == self._identity(task, source) else None

    def save(self, task: str, source: str, state: State) -> None:
        """Replace the task's state; the arguments are those of `load`.

        Raises:
            CompileError: the disk refuses.
        """
        path = self.path(task)
        try:
            save_state(path, state, self._identity(task, source))
        except OSError as error:
            raise CompileError(
                f"cannot save the state of a training: {error}",
                location=str(path),
                hint="free disk space and run the same command again: finished matrices are kept",
            ) from error

    def remove(self, task: str) -> None:
        """Remove the task's state: it is finished."""
        remove_state(self.path(task))

    def remove_all(self) -> None:
        """Remove the states of all runs of this archive, torn ones as well."""
        for path in list(self._all()):
            path.unlink(missing_ok=True)

    def _all(self) -> Iterator[Path]:
        if not self.partial.parent.is_dir():
            return
        for path in self.partial.parent.iterdir():
            if path.name.startswith(f"{self.partial.name}.") and path.name.endswith((SUFFIX, NEW)):
                yield path

    def _identity(self, task: str, source: str) -> dict[str, str]:
        return {"run": self.run, "task": task, "source": source}


class TaskCallback:
    """Reports, saves and stops the training in one task (`codecs.callback.TrainingCallback`).

    Args:
        task: the task.
        states: where its state is kept; None keeps none.
        context: where events go, and whether a stop was asked for.
        source: gives the digest of the weights that the task has read.
    """

    def __init__(
        self,
        task: Task,
        states: StateFiles | None,
        context: Context,
        source: Callable[[], str],
    ) -> None:
        self._task = task
        self._states = states
        self._context = context
        self._source = source
        self._began = self._saved_at = self._emitted_at = time.monotonic()
        self._first: int | None = None

    def saved_state(self) -> State | None:
        """The state of an interrupted training, if there is one."""
        self._began = self._saved_at = time.monotonic()
        if self._states is None:
            return None
        return self._states.load(self._task.key, self._source())

    def on_epoch_end(
        self, epoch: int, epochs: int, error: Callable[[], float], state: Callable[[], State]
    ) -> None:
        """Report the training, save its state, or stop.

        Raises:
            Interrupted: a stop was asked for; the state is kept.
            CompileError: the state cannot be saved.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = epoch - 1
        if now - self._emitted_at >= EMIT_SECONDS:
            self._emitted_at = now
            self._context.emit(
                Training(
                    name=self._task.title,
                    epoch=epoch,
                    epochs=epochs,
                    error=error(),
                    epoch_seconds=(now - self._began) / (epoch - self._first),
                    operations=self._task.operations,
                )
            )
        stop = self._context.stop_requested() and epoch < epochs
        if self._states is not None and (stop or now - self._saved_at >= SAVE_SECONDS):
            self._states.save(self._task.key, self._source(), state())
            self._saved_at = time.monotonic()
        if stop:
            raise Interrupted(
                "stopped: the finished matrices are kept, and the training under way"
                if self._states is not None
                else "stopped",
                hint="run the same command again to resume where it stopped",
            )
