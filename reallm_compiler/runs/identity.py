"""What decides the bytes of an output, as named fields.

An interrupted run may go on only if every field is as it was; otherwise all that differ are named.
What does not change bytes (workers, paths) is no field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from reallm_compiler.distribution import VERSION
from reallm_compiler.errors import ResumeError

TITLES = {
    "plan": "the recipe, or the model's tensors",
    "base": "the archive",
    "files": "the config and tokenizer files",
    "source": "the checkpoint's files",
    "original": "the original",
    "statistics": "the statistics",
    "text": "the text",
    "options": "the settings",
    "compute": "the device or the processor's capability",
    "reallm": "the version of reallm",
    "torch": "the version of torch",
}
"""Fields for people."""


def compute_name(device: torch.device) -> str:
    """Device type and capability, such as `cpu AVX512` or `cuda sm_90`."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda sm_{major}{minor}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def machine_fields(device: torch.device) -> dict[str, str]:
    """The fields of every run: `compute`, `reallm` and `torch`."""
    return {"compute": compute_name(device), "reallm": VERSION, "torch": torch.__version__}


def digest_of(identity: Mapping[str, Any]) -> str:
    """A digest of plain data, such as an identity, in hex."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], location: str) -> None:
    """The identity of an interrupted run is that of this one.

    Args:
        found: of the interrupted run, as JSON gave it back.
        wanted: of this run; its keys are in `TITLES`.
        location: the output, for the message.

    Raises:
        ResumeError: a field differs; names all that do.
    """
    now = json.loads(json.dumps(wanted))
    changed = [key for key in now if found.get(key) != now[key]]
    if not changed:
        return
    differences = "; ".join(_difference(key, found.get(key), now[key]) for key in changed)
    raise ResumeError(
        f"the interrupted run of this output had other inputs: {differences}",
        location=location,
        note="continuing would mix the bytes of two different runs",
        hint="undo the change, or start over with `--resume never`",
    )


def _difference(key: str, then: Any, now: Any) -> str:  # noqa: ANN401 - any JSON
    title = TITLES[key]
    if key in ("compute", "reallm", "torch"):
        return f"{title} (`{then}` then, `{now}` now)"
    if isinstance(now, dict):
        old = then if isinstance(then, dict) else {}
        names = sorted(name for name in {*old, *now} if old.get(name) != now.get(name))
        return f"{title} ({', '.join(names)})"
    return title
