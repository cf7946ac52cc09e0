"""Where a run stands, on disk: enough to go on and end with the same bytes.

`OUTPUT.tuning` is a safetensors file beside the output: all tuned numbers, the best ones so far,
Adam's moments, and as metadata the place in the run and the identity of the run. It is replaced in
one step, so that there is always a whole one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reallm_compiler.errors import OutputError, ResumeError
from reallm_compiler.execute.stop import Interrupted, StopRequest
from reallm_formats.system import sync

SECONDS = 30.0
"""Time between two states, about."""

_TITLES = {
    "base": "the archive",
    "source": "the original",
    "text": "the text",
    "options": "the settings",
    "compute": "the device or the processor's capability",
    "reallm": "the version of reallm",
    "torch": "the version of torch",
}


class State:
    """The state file of one output.

    Args:
        output: the adapter or archive that will be written.
        identity: all that decides its bytes, as plain data.
        read: gives digests of the original's tensors that were read so far.
        stop: asked whether to stop.
    """

    def __init__(
        self,
        output: Path,
        identity: Mapping[str, Any],
        read: Callable[[], Mapping[str, str]],
        stop: StopRequest,
    ) -> None:
        self.path = output.with_name(output.name + ".tuning")
        self._identity = json.loads(json.dumps(identity))
        self._read = read
        self._stop = stop
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]] | None:
        """Place and tensors of an interrupted run, and digests of what it had read of the original.

        None if there was none.

        Raises:
            ResumeError: that run had other inputs, or the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ResumeError(
                "the state of an interrupted run cannot be read",
                location=str(self.path),
                note=str(error),
                hint="start over with `--resume never`",
            ) from None
        found = facts["identity"]
        changed = [title for key, title in _TITLES.items() if found.get(key) != self._identity[key]]
        if changed:
            raise ResumeError(
                "the interrupted run of this output had other inputs: " + "; ".join(changed),
                location=str(self.path),
                note="going on would mix two different runs",
                hint="restore what has changed, or start over with `--resume never`",
            )
        return facts["place"], tensors, facts["read"]

    def due(self) -> bool:
        """Whether the state should be saved now."""
        return self._stop.requested or time.monotonic() - self._last >= SECONDS

    def save(self, place: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the file; then stop if that was asked for.

        Raises:
            OutputError: the disk refuses.
            Interrupted: the run was asked to stop.
        """
        facts = {"identity": self._identity, "place": dict(place), "read": dict(self._read())}
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        data = save(whole, metadata={"state": json.dumps(facts)})
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                sync(file.fileno())
            os.replace(fresh, self.path)
        except OSError as error:
            raise OutputError(
                f"cannot write the state: {error.strerror}", location=str(self.path)
            ) from error
        self._last = time.monotonic()
        if self._stop.requested:
            raise Interrupted(
                "stopped: what was tuned so far is kept",
                location=str(self.path),
                hint="run the same command again to go on where it stood",
            )

    def remove(self) -> None:
        """The run is finished."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(self.path.name + ".new").unlink(missing_ok=True)
