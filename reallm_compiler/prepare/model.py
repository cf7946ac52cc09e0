"""The inventory of a prepared model: what each of its tensors is made of.

The model stays the same function. Its tensors have the names, shapes and types of the original's,
and an `Origin` that says how `models.weights` makes them when they are read, one at a time. What a
kind of `prepare` does is a function from roles to origins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reallm_compiler.checkpoint import Inventory, natural_key
from reallm_compiler.checkpoint.embed import config_bytes
from reallm_compiler.checkpoint.folder import CONFIG
from reallm_compiler.checkpoint.linear import matrices
from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.prepare.graph import EMBEDDING, HEAD, Graph, Role, graph_of
from reallm_compiler.stages.prepare import FoldNorms, Prepare, PrepareStage, Rotate
from reallm_compiler.tensors import Origin, RotationSpec, TensorSpec

_TIED = {EMBEDDING, HEAD}
_STAGES: TypeAdapter[tuple[PrepareStage, ...]] = TypeAdapter(Prepare)


def prepare_stages(recipe: Mapping[str, Any]) -> tuple[PrepareStage, ...]:
    """What a recipe that stands in an archive does to the whole model.

    Raises:
        FormatError: rule P1: it says what this version does not know.
    """
    try:
        return _STAGES.validate_python(recipe.get("prepare", []))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FormatError(
            "P1",
            f"a `prepare` that this version does not know: {first['msg']}",
            location="manifest: document.recipe.prepare",
            hint="a newer reallm may read this archive",
        ) from None


def prepare_model(inventory: Inventory, stages: Sequence[PrepareStage]) -> Inventory:
    """The inventory of the model that is coded in place of the one in the checkpoint.

    Args:
        inventory: of the checkpoint.
        stages: of the recipe; none gives the inventory back.

    Raises:
        SourceError: the graph of the model is not known, or cannot be folded and rotated.
    """
    if not stages:
        return inventory
    label = inventory.path or "the model"
    specs = {spec.name: spec for spec in inventory.tensors}
    origins = {name: Origin(tensor=name) for name in specs}
    tied = {alias: kept for alias, kept in inventory.ties.items() if {alias, kept} == _TIED}
    for alias, kept in tied.items():
        specs[alias] = replace(specs[kept], name=alias)
        origins[alias] = Origin(tensor=kept)
    graph = graph_of(inventory.config, specs, label)
    for stage in stages:
        apply = _APPLY[type(stage)]
        origins = {
            name: apply(stage, graph, specs, graph.roles[name], origin)
            for name, origin in origins.items()
        }
    for name, origin in origins.items():
        _check_fits(specs[name], origin, label)
    tensors = tuple(
        replace(spec, origin=None if origins[name] == Origin(tensor=name) else origins[name])
        for name, spec in sorted(specs.items(), key=lambda item: natural_key(item[0]))
    )
    config = dict(inventory.config or {})
    files, notes = inventory.files, inventory.notes
    if tied:
        config["tie_word_embeddings"] = False
        files = tuple((n, config_bytes(config) if n == CONFIG else data) for n, data in files)
        notes = (
            *notes,
            f"`prepare` unties the head from the embedding: `{HEAD}` is a matrix of its own, "
            f"{specs[HEAD].stored_bytes:,} bytes in the checkpoint's type",
        )
    return replace(
        inventory,
        tensors=tensors,
        config=config,
        files=files,
        ties={alias: kept for alias, kept in inventory.ties.items() if alias not in tied},
        duplicates=(),
        notes=notes,
        facts=tuple(matrices(tensors, config, inventory.prediction)),
        original=inventory,
    )


def _check_fits(spec: TensorSpec, origin: Origin, label: str) -> None:
    """Refuse a tensor whose extents are not those that the config states."""
    rows = spec.shape[0] if spec.shape else 0
    columns = spec.shape[1] if len(spec.shape) == 2 else 1
    first, last = origin.row_range or (0, rows)
    fits = (
        (origin.gain is None or origin.gain.shape == (columns,))
        and (origin.columns is None or columns % origin.columns.block == 0)
        and (origin.rows is None or (last - first) % origin.rows.block == 0)
        and last <= rows
    )
    if not fits:
        raise SourceError(
            f"{spec.name} has the extents {list(spec.shape)}, which do not fit the sizes that the "
            "config states",
            location=label,
            hint="compare config.json with the one that the model was published with",
        )


def _fold(
    stage: FoldNorms, graph: Graph, specs: Mapping[str, TensorSpec], role: Role, origin: Origin
) -> Origin:
    if role.folded:
        return replace(origin, constant=1.0 - graph.gain_offset)
    if role.norm is None:
        return origin
    return replace(origin, gain=specs[role.norm], gain_offset=graph.gain_offset)


def _rotate(
    stage: Rotate, graph: Graph, specs: Mapping[str, TensorSpec], role: Role, origin: Origin
) -> Origin:
    stream = RotationSpec(block=graph.hidden, seed=2 * stage.seed) if stage.stream else None
    columns = stream if role.reads else None
    rows = stream if role.writes else None
    row_range = None
    if role.layer is not None and stage.heads:
        # One rotation for all heads of a layer: those that share values share it as well.
        inside = RotationSpec(block=graph.head, seed=2 * (stage.seed + role.layer) + 1)
        if role.attended:
            columns = inside
        if role.values is not None:
            rows, row_range = inside, role.values
    return replace(origin, columns=columns, rows=rows, row_range=row_range)


_APPLY: Mapping[type[PrepareStage], Any] = {FoldNorms: _fold, Rotate: _rotate}
