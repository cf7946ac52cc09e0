"""What learns in which block of a model while its matrices are coded; names and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from reallm_compiler.checkpoint import layer_index
from reallm_compiler.checkpoint.linear import known_role
from reallm_compiler.errors import FormatError, Problem
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_compiler.stages import BlockFit, Learnable
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import MatrixLayout

_OF_TERM: Mapping[str, Learnable] = {
    "scales": "scales",
    "codebook": "codebooks",
    "low_rank": "factors",
    "dora": "magnitudes",
}
"""By which entry of `learn` the numbers of a budget term learn."""

_NUMBERS = ("f32", "f16", "bf16", "i8")
"""Types of sections that hold numbers and no codes."""

_NEEDS: Mapping[Learnable, str] = {
    "rounding": "an evenly spaced quantizer of single weights, scales, and `nearest` rounding",
    "clip": "scales of one level that follow from the ends of a range (`absmax`, `minmax`, "
    "`affine`), a quantizer of single weights, `nearest` rounding, and no residual that is fitted "
    "in turn after the codes",
    "scales": "scales that are stored as numbers",
    "channel_scale": "a transform that stores numbers (`channel_scale`)",
    "codebooks": "a quantizer with a table of its own",
    "factors": "a `low_rank` residual",
    "magnitudes": "`dora: true`",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FitBlock:
    """A block of the model.

    Attributes:
        number: counted from 0.
        layer: its number in names.
        matrices: its coded matrices, in storage order.
        norms: its kept tensors whose gains learn.
    """

    number: int
    layer: int
    matrices: tuple[PlannedMatrix, ...]
    norms: tuple[PlannedTensor, ...]


def fit_of(plan: Plan) -> BlockFit | None:
    """What learns by the plan's recipe; None if nothing does.

    Raises:
        FormatError: rule P1: an archive's recipe says what this version does not know.
    """
    plain = plan.recipe.get("fit")
    if plain is None:
        return None
    try:
        return BlockFit.model_validate(plain)
    except ValidationError as error:
        raise FormatError(
            "P1",
            f"a `fit` that this version does not know: {error.errors()[0]['msg']}",
            location="manifest: document.recipe.fit",
            hint="a newer reallm may read this archive",
        ) from None


def fit_blocks(plan: Plan) -> tuple[FitBlock, ...]:
    """The blocks whose matrices are coded together, in order; none without a `fit`."""
    fit = fit_of(plan)
    if fit is None:
        return ()
    inside: dict[int, list[PlannedMatrix]] = {}
    for matrix in plan.matrices:
        layer = layer_index(matrix.name)
        if layer is not None:
            inside.setdefault(layer, []).append(matrix)
    norms: dict[int | None, list[PlannedTensor]] = {}
    if "norms" in fit.learn:
        for tensor in plan.tensors:
            if is_norm(tensor):
                norms.setdefault(layer_index(tensor.name), []).append(tensor)
    return tuple(
        FitBlock(
            number=number,
            layer=layer,
            matrices=tuple(inside[layer]),
            norms=tuple(norms.get(layer, ())),
        )
        for number, layer in enumerate(sorted(inside))
    )


def is_norm(tensor: PlannedTensor) -> bool:
    """Whether a kept tensor holds the gains of a norm."""
    gains = tensor.name.endswith(".weight") and known_role(tensor.name) == "norm"
    return gains and len(tensor.shape) == 1 and tensor.dtype in _NUMBERS


def learned_specs(
    layout: MatrixLayout, learn: Iterable[Learnable]
) -> dict[Learnable, list[SectionSpec]]:
    """The sections of numbers of a matrix that learn by each entry of `learn`."""
    found: dict[Learnable, list[SectionSpec]] = {}
    changing = {spec.role for stage in layout.plan.transform for spec in layout.sections_of(stage)}
    for spec in layout.own_sections:
        learnable: Learnable | None = _OF_TERM.get(spec.term)
        if spec.role in changing:
            learnable = "channel_scale"
        if learnable is not None and learnable in learn and spec.dtype in _NUMBERS:
            found.setdefault(learnable, []).append(spec)
    return found


def learnable_in(layout: MatrixLayout, learn: Sequence[Learnable]) -> tuple[Learnable, ...]:
    """Those entries of `learn` by which a matrix can change."""
    plan = layout.plan
    can: set[Learnable] = set(learned_specs(layout, learn))
    if plan.rounding.alone and plan.quantizer.scalar:
        # After a residual that is fitted in turn after the codes, nobody knows what was coded last.
        known = all(stage.first or stage.rounds == 1 for stage in plan.residual)
        if plan.scales.from_ends and known:
            can.add("clip")
        if plan.quantizer.even and plan.scales.range != "free":
            can.add("rounding")
    return tuple(learnable for learnable in learn if learnable in can)


def fit_problems(
    fit: BlockFit,
    location: str,
    matrices: Sequence[PlannedMatrix],
    tensors: Sequence[PlannedTensor],
) -> list[Problem]:
    """What speaks against a `fit`: entries of `learn` by which no matrix or norm can change."""
    inside = [matrix for matrix in matrices if layer_index(matrix.name) is not None]
    if not inside:
        message = "no coded matrix lies in a block of the model"
        return [Problem(location=location, path="fit", message=message)]
    layouts = {id(matrix.layout): matrix.layout for matrix in inside}.values()
    if any(layout.plan.autoencoder.trained for layout in layouts):
        message = "blocks do not learn where a matrix has a trained autoencoder: its weights are "
        message += "what a network makes of latents"
        return [Problem(location=location, path="fit", message=message)]
    can = {learnable for layout in layouts for learnable in learnable_in(layout, fit.learn)}
    if any(is_norm(tensor) and layer_index(tensor.name) is not None for tensor in tensors):
        can.add("norms")
    return [
        Problem(
            location=location,
            path="fit.learn",
            message=f"`{entry}` changes nothing here: no matrix of a block has {_NEEDS[entry]}"
            if entry in _NEEDS
            else f"`{entry}` changes nothing here: no block keeps the gains of a norm",
        )
        for entry in fit.learn
        if entry not in can
    ]
