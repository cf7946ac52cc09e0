"""What a few tokens show before the run: whether blocks run alone, and what is multiplied where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reallm_compiler.calibration.original import Original
from reallm_compiler.calibration.products import Product, Products
from reallm_compiler.calibration.schedule import Measurement
from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.models.blocks import Calls, UnfitBlocksError, calls_of, hidden_states
from reallm_compiler.planning.statistics import (
    StatisticsForm,
    measured_matrices,
    same_inputs,
    statistics_rows,
)
from reallm_formats.kinds.statistics import NONE

TOKENS = 16
"""Tokens of a sequence that the model is tried on."""


@dataclass(frozen=True, slots=True)
class Probed:
    """A model that was tried.

    Attributes:
        original: the model; whole if its blocks cannot be run one by one.
        calls: what it calls its blocks with; None if it is whole.
        measurement: what can be measured.
        left_out: matrices that the model never multiplies by for text.
        note: why its blocks cannot be run one by one; None if they can.
    """

    original: Original
    calls: Calls | None
    measurement: Measurement
    left_out: tuple[str, ...]
    note: str | None = None


def probe_model(
    inventory: Inventory,
    form: StatisticsForm,
    ids: Tensor,
    device: torch.device,
    original: Original | None = None,
) -> Probed:
    """Try a checkpoint's model, by blocks if they can be run one by one, else as a whole.

    Args:
        inventory: of the checkpoint.
        form: how much is measured.
        ids: int64 [2, t], on the device.
        device: where it runs.
        original: the model, if it is there already.

    Raises:
        SourceError: a shard cannot be read.
    """
    facts = measured_matrices(inventory)
    if original is None:
        original = Original(inventory, facts, device)
    probed = probe(original, facts, form, ids)
    if probed.calls is None and original.blocks:
        whole = Original(inventory, facts, device, whole=True)
        probed = replace(probe(whole, facts, form, ids), note=probed.note)
    return probed


def probe(
    original: Original,
    facts: Sequence[MatrixFact],
    form: StatisticsForm,
    ids: Tensor,
) -> Probed:
    """Try a model on tokens [2, t].

    Raises:
        SourceError: a shard cannot be read.
    """
    met: dict[str, Tensor] = {}

    def on_products(products: Sequence[Product]) -> None:
        for one in products:
            met.setdefault(one.name, one.inputs)  # held, so that no other gets its memory

    calls, note, before = None, None, set()
    with original.as_a_whole(), Products(original.memory, on_products):
        try:
            if original.blocks:
                hidden_states(original.model, original.blocks[0].module, ids)
                before = set(met)
                calls = calls_of(original.model, original.blocks, ids)
        except UnfitBlocksError as error:
            at = f"{error.location}: " if error.location else ""
            note = f"the model is run as a whole: {at}{error.note}"
        if calls is None:
            with torch.no_grad():
                original.model(input_ids=ids, use_cache=False)
    inside = (
        [set(original.matrices_in(number)) for number in range(len(original.blocks))]
        if calls is not None
        else []
    )
    # An expert that these few tokens do not reach may be reached by others.
    possible = set(met).union(*inside) if inside else set(met) | _stacked(facts)
    chosen = [fact for fact in facts if fact.name in possible - set(original.unknown)]
    before = before if calls is not None else set()
    rows = tuple(
        replace(row, output_form=NONE) if row.name in before else row
        for row in statistics_rows(chosen, _inputs(chosen, met), form)
    )
    parts = tuple(tuple(row for row in rows if row.name in names) for names in inside)
    measured = before | {row.name for part in parts for row in part}
    return Probed(
        original=original,
        calls=calls,
        measurement=Measurement(
            rows=rows,
            stem=tuple(row for row in rows if row.name in before),
            parts=parts,
            tail=tuple(row for row in rows if row.name not in measured),
            gradients=form.gradients,
        ),
        left_out=tuple(fact.name for fact in facts if fact not in chosen),
        note=note,
    )


def _inputs(facts: Sequence[MatrixFact], met: dict[str, Tensor]) -> dict[str, str]:
    """For each matrix the first with the same inputs: by its name, unless it was seen otherwise."""
    found = same_inputs(facts)
    for name, first in found.items():
        one, other = met.get(name), met.get(first)
        if one is not None and other is not None and not _same_memory(one, other):
            found[name] = name
    return found


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return (one.data_ptr(), one.shape, one.stride()) == (
        other.data_ptr(),
        other.shape,
        other.stride(),
    )


def _stacked(facts: Sequence[MatrixFact]) -> set[str]:
    return {fact.name for fact in facts if fact.index is not None}
