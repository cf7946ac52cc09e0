"""Remarks on a plan that its budget shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.planning.decoders import DecoderFile
from reallm_compiler.planning.folding import Fold
from reallm_compiler.planning.statistics import StatisticsForm, statistics_bytes
from reallm_compiler.recipe import Recipe


def notes_of(
    recipe: Recipe,
    inventory: Inventory,
    decoders: Iterable[DecoderFile],
    folds: Mapping[str, Fold],
) -> tuple[str, ...]:
    """What a reader of the budget should know.

    Args:
        recipe: that the plan follows.
        inventory: of the checkpoint, or of the prepared model.
        decoders: trained decoders that are used as they are.
        folds: factors that are folded into what makes inputs, by name.
    """
    return (
        *inventory.notes,
        *_unknown_note(inventory),
        *map(_decoder_note, decoders),
        *_statistics_note(recipe, inventory),
        *_folds_note(folds),
    )


def _unknown_note(inventory: Inventory) -> tuple[str, ...]:
    if inventory.complete:
        return ()
    return ("the tokenizer is unknown here: file_bytes leaves it out",)


def _decoder_note(file: DecoderFile) -> str:
    return (
        f"the decoder {file.digest} is used as it is: its file of {file.nbytes} bytes is not "
        "counted here and must be there, beside the archive or by `--decoder`, when it is read"
    )


def _statistics_note(recipe: Recipe, inventory: Inventory) -> tuple[str, ...]:
    if recipe.statistics != "required":
        return ()
    size = statistics_bytes(inventory, StatisticsForm())
    return (
        f"the statistics that this recipe needs take about {size:,} bytes in a file of their own "
        "(`reallm calibrate`; less with `--diagonal N`)",
    )


def _folds_note(folds: Mapping[str, Fold]) -> tuple[str, ...]:
    if not folds:
        return ()
    norms = sum(fold.norm is not None for fold in folds.values())
    count = sum(len(fold.matrices) for fold in folds.values())
    return (
        f"factors of {count} matrices are folded into {norms} norms and {len(folds) - norms} "
        "matrices, and take no bytes",
    )
