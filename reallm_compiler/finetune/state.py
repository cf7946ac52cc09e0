"""The state of a tuning run, on disk: enough to go on and end with the same bytes.

`OUTPUT.tuning` is a safetensors file beside the output: all tuned numbers, the best ones so far,
Adam's moments, and as metadata the position in the run and the identity of the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reallm_compiler.errors import OutputError, ResumeError
from reallm_compiler.finetune.processes import Processes
from reallm_compiler.runs.identity import check_same
from reallm_compiler.runs.state import load_state, remove_state, save_state
from reallm_compiler.runs.stop import Interrupted, StopRequest

SECONDS = 30.0
"""Time between two states, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedRun:
    """What an interrupted run has left.

    Attributes:
        position: how far it was, as plain data.
        tensors: what it needs to go on, by name.
        read: digests of what it read of the original, by tensor.
    """

    position: dict[str, Any]
    tensors: dict[str, Tensor]
    read: dict[str, str]


class State:
    """The state file of one output.

    Args:
        output: the adapter or archive that will be written.
        identity: all that decides its bytes, as plain data.
        read: gives digests of the original's tensors that were read so far.
        stop: asked whether to stop.
        processes: of the run, of which the first one reads and writes.
    """

    def __init__(
        self,
        output: Path,
        identity: Mapping[str, Any],
        read: Callable[[], Mapping[str, str]],
        stop: StopRequest,
        processes: Processes | None = None,
    ) -> None:
        self.path = output.with_name(output.name + ".tuning")
        self._identity = dict(identity)
        self._read = read
        self._stop = stop
        self._processes = processes or Processes()
        self._last = time.monotonic()

    def load(self) -> SavedRun | None:
        """What an interrupted run has left; None if there was none.

        Raises:
            ResumeError: that run had other inputs, or the file is damaged.
        """
        saved = self._processes.from_first(self._loaded)
        if saved is None:
            return None
        return replace(saved, tensors=self._processes.tensors_from_first(saved.tensors))

    def _loaded(self) -> SavedRun | None:
        if not self.path.exists():
            return None
        try:
            metadata, tensors = load_state(self.path)
            facts = json.loads(metadata["state"])
            identity, position, read = facts["identity"], facts["position"], facts["read"]
        except (KeyError, TypeError, ValueError) as error:
            raise ResumeError(
                "the state of an interrupted run cannot be read",
                location=str(self.path),
                note=str(error),
                hint="start over with `--resume never`",
            ) from None
        check_same(identity, self._identity, str(self.path))
        return SavedRun(position=position, tensors=tensors, read=read)

    def due(self) -> bool:
        """Whether the state should be saved now, as the first process or a stop wants it."""
        late = self._processes.is_main and time.monotonic() - self._last >= SECONDS
        return self._processes.any(self._stop.requested or late)

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the file; then stop if that was asked for.

        Args:
            position: how far the run is, as plain data.
            tensors: what it needs to go on, by name.

        Raises:
            OutputError: the disk refuses.
            Interrupted: the run was asked to stop.
        """
        facts = {
            "identity": self._identity,
            "position": dict(position),
            "read": dict(self._read()),
        }
        if self._processes.is_main:
            whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            try:
                save_state(self.path, whole, {"state": json.dumps(facts)})
            except OSError as error:
                raise OutputError(
                    f"cannot write the state: {error.strerror or error}", location=str(self.path)
                ) from error
        self._last = time.monotonic()
        if self._processes.any(self._stop.requested):
            raise Interrupted(
                "stopped: what was tuned so far is kept",
                location=str(self.path),
                hint="run the same command again to resume where it stopped",
            )

    def remove(self) -> None:
        """The run is finished."""
        remove_state(self.path)
