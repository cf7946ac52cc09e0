"""Laws of matrices, asked once for all that are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from reallm_compiler.stages import MatrixPlan

if TYPE_CHECKING:
    from reallm_compiler.planning.model import PlannedMatrix

_Value = TypeVar("_Value")


def once_for_alike(
    law: Callable[[MatrixPlan, tuple[int, int], str], _Value],
) -> Callable[[PlannedMatrix], _Value]:
    """`law` of a matrix's plan, shape and type, asked once for all matrices that have the same.

    A model has a hundred thousand matrices and few that differ. Plans are told apart by identity:
    a hash of a plan costs as much as a law, and `resolve` makes one object for many matrices.
    """
    known: dict[tuple[int, tuple[int, int], str], tuple[MatrixPlan, _Value]] = {}

    def ask(matrix: PlannedMatrix) -> _Value:
        plan = matrix.plan
        key = (id(plan), matrix.shape, matrix.dtype)
        found = known.get(key)
        if found is None:  # the plan is held as well, so that nothing else gets its identity
            found = known[key] = (plan, law(plan, matrix.shape, matrix.dtype))
        return found[1]

    return ask
