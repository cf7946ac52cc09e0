"""Sections that tuning may change beside factors and gains: numbers that are no codes.

What a kind stores under the budget terms `scales` and `codebook` is continuous where its section
holds numbers (floats, or integers of a table); codes of a second level stay. Of the kept tensors
norms and biases are learned: those of one extent whose names end in `.weight` or `.bias`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.storage.base import SectionSpec
from reallm_formats import names

Group: TypeAlias = Literal["scales", "tables", "norms", "biases"]

_OF_TERM: dict[str, Group] = {"scales": "scales", "codebook": "tables"}
_OF_SUFFIX: dict[str, Group] = {".weight": "norms", ".bias": "biases"}
_DTYPES = ("f32", "f16", "bf16", "i8")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnableSection:
    """A section that tuning may change.

    Attributes:
        name: in the archive.
        spec: type, extents and values.
        group: what it is.
        owner: the matrix or the kept tensor that it belongs to; None if a share group has it.
    """

    name: str
    spec: SectionSpec
    group: Group
    owner: str | None


def learnable_sections(plan: Plan) -> dict[str, LearnableSection]:
    """All of them by name, in storage order."""
    found: dict[str, LearnableSection] = {}
    for matrix in plan.matrices:
        for one in sections_of(matrix):
            found.setdefault(one.name, one)
    for tensor in plan.tensors:
        group = _OF_SUFFIX.get(tensor.name[tensor.name.rfind(".") :])
        if group is not None and len(tensor.shape) == 1 and tensor.dtype in _DTYPES:
            name = names.tensor_section(tensor.name)
            found[name] = LearnableSection(
                name=name, spec=tensor.spec, group=group, owner=tensor.name
            )
    return found


def sections_of(matrix: PlannedMatrix) -> Iterator[LearnableSection]:
    """Those of a matrix, its share group's too; none where a trained decoder makes its weights."""
    if matrix.plan.autoencoder.trained:
        return
    for spec in matrix.specs:
        group = _OF_TERM.get(spec.term)
        if group is not None and spec.dtype in _DTYPES:
            name = matrix.section_name(spec)
            owner = None if spec.shared else matrix.name
            yield LearnableSection(name=name, spec=spec, group=group, owner=owner)
