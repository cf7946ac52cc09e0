"""What decides the bytes of an archive, as named fields.

An interrupted compile may go on only if every field is as it was: the fields are the journal's
first record, and the first that differs is named. What does not change bytes (workers, paths) is
not here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.distribution import VERSION
from reallm_compiler.errors import ResumeError
from reallm_compiler.execute.weights import shard_facts
from reallm_compiler.planning.document import fixed_text
from reallm_compiler.planning.model import Plan
from reallm_formats import encode_manifest

_TITLES = {
    "plan": "the recipe, or the model's tensors",
    "compute": "the device or the processor's capability",
    "reallm": "the version of reallm",
    "torch": "the version of torch",
    "files": "the config and tokenizer files",
    "source": "the checkpoint's files",
}


def compute_name(device: torch.device) -> str:
    """Device type and capability, such as `cpu AVX512` or `cuda sm_90`."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda sm_{major}{minor}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def identity_of(plan: Plan, inventory: Inventory, device: torch.device) -> dict[str, Any]:
    """The fields that decide the bytes of the archive, as plain data.

    Shards are told by name, length and header; the weights themselves are digested while they are
    read, and `resume` reads again what the finished units have read.
    """
    manifest = encode_manifest(plan.layout.manifest)
    return {
        "plan": hashlib.sha256(manifest).hexdigest(),
        "compute": compute_name(device),
        "reallm": VERSION,
        "torch": torch.__version__,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in inventory.files},
        "source": shard_facts(inventory),
    }


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], output: str) -> None:
    """An interrupted run's identity is this run's.

    Raises:
        ResumeError: a field differs; names all that do.
    """
    changed = [key for key in wanted if found.get(key) != json.loads(json.dumps(wanted[key]))]
    if not changed:
        return
    lines = []
    for key in changed:
        title = _TITLES[key]
        if key in ("compute", "reallm", "torch"):
            title += f" (`{found.get(key)}` then, `{wanted[key]}` now)"
        elif key in ("files", "source"):
            then, now = found.get(key) or {}, wanted[key]
            names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
            title += f" ({', '.join(names)})"
        lines.append(title)
    raise ResumeError(
        "the interrupted compile of this output had other inputs: " + "; ".join(lines),
        location=output,
        note="going on would mix bytes of two different runs",
        hint="restore what has changed, or start over with `--resume never`",
    )


def provenance(identity: Mapping[str, Any], source: bytes) -> dict[str, Any]:
    """What the archive says of its origin: fixed-width texts, and the weights' digest.

    Args:
        identity: the run's identity.
        source: SHA-256 over the digests of all weights that were read, 32 bytes.
    """
    texts = {key: fixed_text(str(identity[key])) for key in ("compute", "reallm", "torch")}
    return {**texts, "source": source}
