"""Recipe + inventory -> Plan.

Steps: (1) list what the checkpoint holds, (2) ask the recipe what becomes of each part, (3) apply
the size laws, (4) lay out every section. Nothing is written and no weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint import (
    Inventory,
    MatrixFact,
    matrix_name,
    open_source,
)
from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.planning.document import blank_provenance, section_blocks, to_document
from reallm_compiler.planning.folding import plan_folds
from reallm_compiler.planning.gc_paused import gc_paused
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.notes import notes_of
from reallm_compiler.planning.parts import PlannedFile, PlannedMatrix, PlannedTensor
from reallm_compiler.planning.refusals import (
    refuse_choice,
    refuse_folded_fit,
    refuse_half_kept,
    refuse_impossible,
    refuse_unfit,
    refuse_unmeasured,
)
from reallm_compiler.planning.reused_decoders import resolve_decoders, with_digests
from reallm_compiler.prepare import prepare_model
from reallm_compiler.recipe import Candidate, Recipe, load_recipe, resolve
from reallm_compiler.recipe.resolve import Traces
from reallm_compiler.storage.base import DTYPES
from reallm_compiler.storage.matrix import LayoutTable
from reallm_formats import layout

KIND = "model"
_FLOATS = frozenset({"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"})


@gc_paused()
def plan(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    model: str | os.PathLike[str] | Mapping[str, Any] | Inventory | None = None,
) -> Plan:
    """The plan of compiling a checkpoint by a recipe.

    Args:
        recipe: a shipped recipe's name, a file, plain data, or a loaded recipe.
        model: a checkpoint folder, a bare config.json, a `shapes` document, a hub id, or an
            opened inventory; the recipe's own `model` when None.

    Raises:
        RecipeError: the recipe is wrong by itself or for this model; holds every problem.
        SourceError: the model cannot be read, or none is named, or no archive could hold it.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return build(loaded, open_model(loaded, model, weights=False))


def open_model(
    recipe: Recipe,
    model: str | os.PathLike[str] | Mapping[str, Any] | Inventory | None,
    *,
    weights: bool = True,
) -> Inventory:
    """The inventory of `model`, or of the model that the recipe names, prepared by the recipe.

    Without `weights` those of a hub id are not downloaded.

    Raises:
        SourceError: no model is named, it cannot be read, or `prepare` does not know its graph.
    """
    if isinstance(model, Inventory):
        return prepare_model(model, recipe.prepare)
    named = model if model is not None else recipe.model
    if named is None:
        raise SourceError(
            "no model is named",
            hint="add `model: path-or-hub-id` to the recipe, or give --model PATH",
        )
    return prepare_model(open_source(named, weights=weights), recipe.prepare)


@gc_paused()
def build(recipe: Recipe, inventory: Inventory) -> Plan:
    """The plan for the inventory that `open_model` gave for this recipe."""
    refuse_choice(recipe)
    facts = inventory.matrices()
    others = inventory.others()
    decisions = resolve(recipe, rule_candidates(inventory))
    matrices = []
    layouts = LayoutTable()
    kept = {spec.name: decisions[matrix_name(spec.name)].keep for spec in others}
    plans = {id(one.plan): one.plan for one in decisions.values() if one.plan is not None}
    coded = {key: plan.without_folded() if plan.folded else plan for key, plan in plans.items()}
    for fact in facts:
        decision = decisions[fact.name]
        if decision.plan is None:
            kept.setdefault(fact.tensor, decision.keep)
            continue
        matrices.append(
            PlannedMatrix(
                name=fact.name,
                tensor=fact.tensor,
                index=fact.index,
                transposed=fact.transposed,
                layout=layouts.layout_of(coded[id(decision.plan)], fact.shape, fact.dtype),
            )
        )
    folder = recipe.files[-1].parent if recipe.files else Path()
    matrices, decoders = resolve_decoders(matrices, decisions, folder)
    document = with_digests(recipe.document, decoders)
    refuse_impossible(recipe, matrices, decisions)
    refuse_unmeasured(recipe, decisions)
    refuse_half_kept(matrices, kept)
    tensors = [
        PlannedTensor(
            name=spec.name, dtype=_kept_dtype(spec.dtype, kept[spec.name]), shape=spec.shape
        )
        for spec in inventory.tensors
        if spec.name in kept
    ]
    refuse_unfit(recipe, matrices, tensors)
    folds = plan_folds(inventory, matrices, tensors, decisions)
    refuse_folded_fit(recipe, folds)
    files = [PlannedFile(path=path, nbytes=len(data)) for path, data in inventory.files]
    try:
        file_layout = layout(
            kind=KIND,
            features=[],
            document=to_document(
                document,
                matrices,
                inventory.ties,
                provenance=blank_provenance(
                    statistics=recipe.statistics == "required", text=recipe.fit is not None
                ),
            ),
            blocks=section_blocks(matrices, tensors, files),
        )
    except FormatError as error:
        # Nothing has been written: what breaks a rule of the format here came with the source.
        raise SourceError(
            f"no archive can hold this plan: {error.message}",
            location=inventory.path or None,
            note=error.location,
        ) from error
    return Plan(
        recipe=document,
        matrices=tuple(matrices),
        tensors=tuple(tensors),
        files=tuple(files),
        ties=inventory.ties,
        layout=file_layout,
        notes=notes_of(recipe, inventory, decoders.values(), folds),
        decoders={file.digest: file.path for file in decoders.values()},
        traces=Traces(decisions),
        folds=folds,
        tensor_bytes=sum(
            spec.stored_bytes + (spec.scale.tensor.stored_bytes if spec.scale is not None else 0)
            for spec in (inventory.original or inventory).tensors
        ),
    )


def rule_candidates(inventory: Inventory) -> list[Candidate]:
    """All tensors of a model, as the rules of a recipe see them: matrices, then the others."""
    return [_matrix_candidate(fact) for fact in inventory.matrices()] + [
        Candidate(
            name=matrix_name(spec.name),
            layer=inventory.layer_of(spec.name),
            is_matrix=False,
            coded_by_default=False,
        )
        for spec in inventory.others()
    ]


def _matrix_candidate(fact: MatrixFact) -> Candidate:
    return Candidate(
        name=fact.name,
        layer=fact.layer,
        is_matrix=True,
        coded_by_default=fact.coded_by_default,
        role=fact.role,
        numel=fact.shape[0] * fact.shape[1],
    )


def _kept_dtype(source: str, keep: str | None) -> str:
    """Stored type of a kept tensor; only floats are ever cast."""
    if keep is None or keep == "source" or source not in _FLOATS:
        return source
    return DTYPES[keep]
