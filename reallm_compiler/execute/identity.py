"""What decides the bytes of an archive, and what the archive says of its origin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.checkpoint.identity import shard_facts
from reallm_compiler.execute.fit.text import TextInput
from reallm_compiler.execute.statistics import StatisticsInput
from reallm_compiler.planning.document import fixed_text
from reallm_compiler.planning.model import Plan
from reallm_compiler.runs.tasks import TaskResult, source_digests
from reallm_formats import encode_manifest


def identity_of(
    plan: Plan,
    inventory: Inventory,
    machine: Mapping[str, str],
    statistics: StatisticsInput | None = None,
    text: TextInput | None = None,
) -> dict[str, Any]:
    """The fields that decide the bytes of the archive, as plain data.

    `machine` are the fields of the machines that do the tasks (`runs.identity.machine_fields`).

    Shards are identified by name, length and header; weights are digested while they are
    read, and `resume` reads again what the finished tasks have read.
    """
    return {
        "plan": hashlib.sha256(encode_manifest(plan.layout.manifest)).hexdigest(),
        **machine,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in inventory.files},
        "source": shard_facts(inventory),
        **({"statistics": statistics.digest.hex()} if statistics is not None else {}),
        **({"text": text.digest.hex()} if text is not None else {}),
    }


def provenance(identity: Mapping[str, Any], results: Iterable[TaskResult]) -> dict[str, Any]:
    """What the archive says of its origin: fixed-width texts, and the weights' digest.

    Args:
        identity: the run's identity.
        results: of all tasks; the digest is over those of the weights that they read, by name.
    """
    tensors = source_digests(results)
    source = hashlib.sha256()
    for name in sorted(tensors):
        source.update(f"{name} {tensors[name]}\n".encode())
    texts: dict[str, Any] = {
        key: fixed_text(str(identity[key])) for key in ("compute", "reallm", "torch")
    }
    given = {"statistics", "text"} & identity.keys()
    texts |= {key: bytes.fromhex(identity[key]) for key in given}
    return {**texts, "source": source.digest()}
