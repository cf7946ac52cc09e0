"""Factors of columns that are folded into what makes the inputs: by whom, and where they lie.

Where a recipe folds a transform (`fold: true`), all matrices that read one input are multiplied by
the same factors, and the norm or the matrix that makes the input is divided by them. The model
stays the same function, and nothing is stored for the transform. Factors have the name of the
tensor that makes the input. They follow from statistics and from the matrices before any factor is
folded, so that they do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_compiler.prepare import Activation, activations_of, fold_factors
from reallm_compiler.recipe import Decision
from reallm_compiler.stages import TransformStage


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """Factors that some matrices have in common.

    Attributes:
        activation: the matrices' tensors, and what makes their input.
        stage: the transform that is folded.
        matrices: the matrices, whose plans are without it.
        norm: the kept norm that is divided by the factors; None where a matrix is.
    """

    activation: Activation
    stage: TransformStage
    matrices: tuple[PlannedMatrix, ...]
    norm: PlannedTensor | None

    @property
    def name(self) -> str:
        """Of the factors: the tensor that makes the input."""
        return self.activation.producer.tensor


def plan_folds(
    inventory: Inventory,
    matrices: Sequence[PlannedMatrix],
    tensors: Sequence[PlannedTensor],
    decisions: Mapping[str, Decision],
) -> dict[str, Fold]:
    """The factors that a recipe folds, by name.

    Args:
        inventory: of the checkpoint, or of the prepared model.
        matrices: the coded matrices, whose plans are without what is folded.
        tensors: the kept tensors.
        decisions: of the recipe, by the names of matrices.

    Raises:
        RecipeError: nothing makes the input of a matrix alone, or others read it that are not
            scaled alike.
        SourceError: the graph of the model is not known.
    """
    by_tensor = {matrix.tensor: matrix for matrix in matrices}
    stages = {tensor: _stage(decisions[one.name]) for tensor, one in by_tensor.items()}
    wanted = {tensor: stage for tensor, stage in stages.items() if stage is not None}
    if not wanted:
        return {}
    activations = activations_of(inventory, wanted)
    kept = {tensor.name: tensor for tensor in tensors}
    refused = dict(activations.unknown)
    folds = {}
    for name, activation in activations.known.items():
        first = next(consumer for consumer in activation.consumers if consumer in wanted)
        other = next(
            (one for one in activation.consumers if wanted.get(one) != wanted[first]), None
        )
        if other is not None:
            refused[first] = f"`{other}` has the same input, and is not scaled alike"
            continue
        folds[name] = Fold(
            activation=activation,
            stage=wanted[first],
            matrices=tuple(by_tensor[consumer] for consumer in activation.consumers),
            norm=kept[name] if activation.producer.norm else None,
        )
    _refuse(refused, by_tensor, decisions)
    return folds


def folded_inventory(inventory: Inventory, folds: Mapping[str, Fold]) -> Inventory:
    """The inventory of the model with its factors folded."""
    return (
        fold_factors(inventory, [fold.activation for fold in folds.values()])
        if folds
        else inventory
    )


def folds_of(folds: Mapping[str, Fold], matrix: PlannedMatrix) -> tuple[Fold, ...]:
    """The factors on which a matrix depends: those of its columns, and of its rows."""
    inside = [fold for fold in folds.values() if matrix.tensor in fold.activation.consumers]
    return (*inside, *(folds[name] for name in (matrix.tensor,) if name in folds))


def recipe_folds(recipe: object) -> bool:
    """Whether a recipe, as plain data, folds a transform anywhere."""
    if isinstance(recipe, Mapping):
        return recipe.get("fold") is True or any(map(recipe_folds, recipe.values()))
    return isinstance(recipe, list | tuple) and any(map(recipe_folds, recipe))


def _stage(decision: Decision) -> TransformStage | None:
    return None if decision.plan is None else decision.plan.folded


def _refuse(
    refused: Mapping[str, str],
    matrices: Mapping[str, PlannedMatrix],
    decisions: Mapping[str, Decision],
) -> None:
    problems: dict[tuple[str, str], Problem] = {}
    for tensor, why in refused.items():
        name = matrices[tensor].name
        at = next(one for one in decisions[name].trace if one.path.startswith("transform"))
        problem = at.problem(
            f"the factors of {name} cannot be folded: {why}",
            "leave `fold` out, by a rule for these matrices or for all",
        )
        problems.setdefault((at.location, why), problem)
    if problems:
        raise RecipeError(list(problems.values()))
