"""Trainings under way: their progress, their saved state, and stopping in the midst of one.

A matrix whose autoencoder is trained may take hours, so its unit can be left and taken up again.
The state stands beside the unfinished archive, in OUT.partial.UNIT.state (safetensors, no pickle):
replaced in one step at least once a minute and when a stop is asked for, taken only by the same
unit of the same run with the same weights, and removed when the unit is in the journal. Losing it
costs time and changes no byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reallm_compiler.codecs.callback import State
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.events import Training
from reallm_compiler.execute.stop import Interrupted
from reallm_compiler.execute.units import Unit
from reallm_formats.system import sync_path

SAVE_SECONDS = 60.0
"""Seconds after which a state is saved at the end of an epoch."""

TELL_SECONDS = 1.0
"""Seconds between two events of one training."""

SUFFIX = ".state"


def digest_of(identity: Mapping[str, Any]) -> str:
    """A digest of plain data, such as what decides a run's bytes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def state_files(partial: Path) -> Iterator[Path]:
    """States that stand beside an unfinished archive, and torn ones."""
    if not partial.parent.is_dir():
        return
    for path in partial.parent.iterdir():
        if path.name.startswith(f"{partial.name}.") and path.name.endswith((SUFFIX, ".new")):
            yield path


def state_path(partial: Path, unit: str) -> Path:
    """Where the state of the unit of this key stands."""
    place = hashlib.sha256(unit.encode()).hexdigest()[:16]
    return partial.with_name(f"{partial.name}.{place}{SUFFIX}")


def remove_states(partial: Path) -> None:
    """Remove all states of an archive."""
    for path in list(state_files(partial)):
        path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Watches:
    """Makes the watch of each unit.

    Attributes:
        partial: the unfinished archive; None for a trial, which keeps no state.
        run: digest of the run's identity.
        tell: hears of each training.
        stopped: whether a stop was asked for.
    """

    partial: Path | None
    run: str
    tell: Callable[[Training], None]
    stopped: Callable[[], bool]

    def of(self, unit: Unit, source: Callable[[], str]) -> TrainingWatch:
        """The watch of one unit; `source` is the digest of the weights that it has read."""
        path = None if self.partial is None else state_path(self.partial, unit.key)
        return TrainingWatch(self, unit, path, source)


class TrainingWatch:
    """Looks on the training of one unit (`codecs.callback.TrainingCallback`)."""

    def __init__(
        self, watches: Watches, unit: Unit, path: Path | None, source: Callable[[], str]
    ) -> None:
        self._watches = watches
        self._unit = unit
        self._path = path
        self._source = source
        self._began = self._saved_at = self._told_at = time.monotonic()
        self._first: int | None = None

    def saved_state(self) -> State | None:
        """The unit's state from an interrupted compile; a damaged or foreign one is no state."""
        self._began = self._saved_at = time.monotonic()
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                if file.metadata() != self._identity():
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None

    def on_epoch_end(
        self, epoch: int, epochs: int, error: Callable[[], float], state: Callable[[], State]
    ) -> None:
        """Tell of the training, save its state, or stop.

        Raises:
            Interrupted: a stop was asked for; the state is kept.
            CompileError: the state cannot be saved.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = epoch - 1
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self._watches.tell(
                Training(
                    name=self._unit.title,
                    epoch=epoch,
                    epochs=epochs,
                    error=error(),
                    epoch_seconds=(now - self._began) / (epoch - self._first),
                    operations=self._unit.operations,
                )
            )
        stop = self._watches.stopped() and epoch < epochs
        if self._path is not None and (stop or now - self._saved_at >= SAVE_SECONDS):
            self._save(self._path, state())
            self._saved_at = time.monotonic()
        if stop:
            raise Interrupted(
                "stopped: the finished matrices are kept, and the training under way"
                if self._path is not None
                else "stopped",
                hint="run the same command again to go on where it stood",
            )

    def _identity(self) -> dict[str, str]:
        """What a state belongs to: the same unit of the same run, with the same weights."""
        return {"run": self._watches.run, "unit": self._unit.key, "source": self._source()}

    def _save(self, path: Path, state: Mapping[str, torch.Tensor]) -> None:
        fresh = path.with_name(f"{path.name}.new")
        try:
            save_file(dict(state), fresh, metadata=self._identity())
            sync_path(fresh)
            os.replace(fresh, path)
        except (OSError, SafetensorError) as error:
            fresh.unlink(missing_ok=True)
            raise CompileError(
                f"cannot save the state of a training: {error}",
                location=str(path),
                hint="make room and run the same command again: finished matrices are kept",
            ) from error
