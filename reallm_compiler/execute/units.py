"""Units of work: what is done, journalled and resumed as a whole.

A share group is fitted first, as a unit of its own; its matrices then read what it stored from
the reserved file. So each matrix stays a unit, and a kill loses at most one per worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reallm_compiler.planning.model import Plan
from reallm_formats import names


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One unit of work.

    Attributes:
        kind: what is done: fit a group's shared sections, code a matrix, copy kept tensors and
            files.
        name: the group, the matrix, or `` for the copies.
        sections: the archive's sections that it writes, in order.
        weights: weights that it codes.
        operations: floating-point operations of the training in it; 0 without one.
    """

    kind: Literal["copy", "share", "matrix"]
    name: str
    sections: tuple[str, ...]
    weights: int
    operations: int = 0

    @property
    def key(self) -> str:
        """Name in the journal, unique within a plan."""
        return f"{self.kind}:{self.name}"

    @property
    def title(self) -> str:
        """Name for people."""
        titles = {"copy": "kept tensors and files", "share": f"share group {self.name}"}
        return titles.get(self.kind, self.name)


def units_of(plan: Plan) -> tuple[list[Unit], list[Unit]]:
    """The units of a plan in two waves: the second may read what the first has stored."""
    copied = [names.file_section(file.path) for file in plan.files]
    copied += [names.tensor_section(tensor.name) for tensor in plan.tensors]
    first = [Unit(kind="copy", name="", sections=tuple(copied), weights=0)] if copied else []
    for group, members in plan.groups.items():
        shared = [members[0].section_name(spec) for spec in members[0].specs if spec.shared]
        operations = sum(member.layout.cost.group_operations for member in members)
        first.append(
            Unit(
                kind="share",
                name=group,
                sections=tuple(shared),
                weights=0,
                operations=operations,
            )
        )
    second = [
        Unit(
            kind="matrix",
            name=matrix.name,
            sections=tuple(matrix.section_name(spec) for spec in matrix.specs if not spec.shared),
            weights=matrix.weights,
            operations=matrix.layout.cost.training_operations - matrix.layout.cost.group_operations,
        )
        for matrix in plan.matrices
    ]
    return first, second
