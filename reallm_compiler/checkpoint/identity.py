"""By what a run that goes on knows that a checkpoint is the same as before."""

from __future__ import annotations

import hashlib

from reallm_compiler.checkpoint.inventory import Inventory
from reallm_compiler.checkpoint.store import shard_bytes


def shard_facts(inventory: Inventory) -> dict[str, list[int | str]]:
    """Length of each shard, and a digest of what its header says, by which a resumed run knows it.

    The weights themselves are compared by the digests of what was read of them.
    """
    headers: dict[str, list[str]] = {}
    for spec in (*inventory.tensors, *inventory.duplicates):
        for stored in (spec, *([spec.scale.tensor] if spec.scale is not None else [])):
            row = f"{stored.name} {stored.stored_dtype} {stored.shape} {stored.begin}"
            headers.setdefault(stored.shard, []).append(row)
    facts: dict[str, list[int | str]] = {}
    for shard, rows in sorted(headers.items()):
        digest = hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()
        facts[shard] = [shard_bytes(inventory.path, shard), digest]
    return facts
