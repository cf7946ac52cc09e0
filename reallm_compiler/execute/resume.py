"""What an interrupted compile has left: which of it this one can take.

A finished unit is taken if its sections are in the partial file as the journal says, and if the
weights that it read are in the checkpoint as they were. Both are read to be sure: once the finished
part of the file, and once the weights of the finished units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import ResumeError, SourceError
from reallm_compiler.execute.events import Checked
from reallm_compiler.execute.units import Unit
from reallm_compiler.execute.weights import Weights
from reallm_compiler.planning.model import Plan
from reallm_formats import Layout, Writer

SHOWN = 3
"""Names of changed tensors that a message shows."""

Records = Mapping[str, Mapping[str, Any]]
"""Records of the journal by the key of their unit."""


def intact_units(
    partial: Path, layout: Layout, units: Sequence[Unit], records: Records
) -> dict[str, Mapping[str, Any]]:
    """The journalled units whose sections are in the partial file as the journal says.

    Raises:
        ResumeError: the partial file has another length.
    """
    if partial.stat().st_size != layout.file_bytes:
        raise ResumeError(
            "the unfinished file has another length than the plan",
            location=str(partial),
            hint="start over with `--resume never`",
        )
    good: dict[str, Mapping[str, Any]] = {}
    with Writer.open(partial, layout) as writer:
        for unit in units:
            record = records.get(unit.key)
            if record is None or set(record["sections"]) != set(unit.sections):
                continue
            if all(
                writer.digest(name).hex() == digest for name, digest in record["sections"].items()
            ):
                good[unit.key] = record
    return good


def check_weights(
    plan: Plan,
    inventory: Inventory,
    units: Sequence[Unit],
    records: Records,
    tell: Callable[[Checked], None],
) -> None:
    """The weights that finished units read are in the checkpoint as they were then.

    Raises:
        ResumeError: some have changed; names them.
        SourceError: a shard cannot be read.
    """
    weights = Weights(inventory)
    seen: dict[str, str] = {}
    finished = [unit for unit in units if unit.key in records]
    for done, unit in enumerate(finished, 1):
        wanted = records[unit.key]["source"]
        if not wanted.items() <= seen.items():
            for tensor, index in parts_of(plan, unit):
                weights.read(tensor, index)
            seen |= weights.take_digests()
            check_digests(inventory, wanted, seen, "compile")
        tell(Checked(units_done=done, units=len(finished)))


def note_digests(known: dict[str, str], found: Mapping[str, str], folder: str) -> None:
    """Put the digests of weights that were read beside those known of this run.

    Raises:
        SourceError: a tensor was read twice and is not the same; names it.
    """
    for name, digest in found.items():
        if known.setdefault(name, digest) != digest:
            raise SourceError(
                f"{name.partition('#')[0]} has changed while it was compiled",
                location=folder,
                note="going on would mix two models",
                hint="leave the checkpoint alone and start over with `--resume never`",
            )


def parts_of(plan: Plan, unit: Unit) -> list[tuple[str, int | None]]:
    """The tensors that a unit reads, or parts of 3-D ones."""
    if unit.kind == "copy":
        return [(tensor.name, None) for tensor in plan.tensors]
    matrices = plan.groups[unit.name] if unit.kind == "share" else (plan.by_name[unit.name],)
    return [(matrix.tensor, matrix.index) for matrix in matrices]


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
