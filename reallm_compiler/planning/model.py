"""The plan: what will stand in the archive, section by section, before a weight is read.

A `Plan` is a frozen value without weights. It comes from a recipe and an inventory (`build`) or
from an archive (`document`), and both give the same object for the same archive: the plan is the
file. Its `layout` has the offset of every section.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from reallm_compiler.planning.budget import Budget
from reallm_compiler.planning.folding import Fold
from reallm_compiler.planning.parts import PlannedFile, PlannedMatrix, PlannedTensor
from reallm_compiler.planning.sizes import budget_of
from reallm_formats import Layout


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the archive's length, and what its sections mean.

    Attributes:
        recipe: the recipe as plain data, without `model` and `output`.
        matrices: coded matrices, in storage order.
        tensors: kept tensors.
        files: embedded files.
        ties: names that stand for another tensor, which alone is stored.
        layout: offset of every section.
        notes: what a reader of the budget should know (such as a tokenizer left out).
        decoders: files of trained decoders that are used as they are, by digest; empty for a plan
            from an archive.
        traces: for each matrix, which rule set which field; empty for a plan from an archive.
        folds: factors of columns that are folded into what makes their inputs, by name; empty for
            a plan from an archive, whose matrices are what they have become.
        tensor_bytes: what the checkpoint's tensors take in its files, what is tied once; None
            for a plan from an archive, which knows their types alone.
    """

    recipe: Mapping[str, Any]
    matrices: tuple[PlannedMatrix, ...]
    tensors: tuple[PlannedTensor, ...]
    files: tuple[PlannedFile, ...]
    ties: Mapping[str, str]
    layout: Layout
    notes: tuple[str, ...] = ()
    decoders: Mapping[str, Path] = field(default_factory=dict)
    traces: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    folds: Mapping[str, Fold] = field(default_factory=dict)
    tensor_bytes: int | None = None

    def __repr__(self) -> str:
        return (
            f"Plan({len(self.matrices)} coded matrices, {len(self.tensors)} kept tensors, "
            f"{self.layout.file_bytes} bytes)"
        )

    @cached_property
    def by_name(self) -> Mapping[str, PlannedMatrix]:
        """Coded matrices by name."""
        return {matrix.name: matrix for matrix in self.matrices}

    @cached_property
    def groups(self) -> Mapping[str, tuple[PlannedMatrix, ...]]:
        """Matrices of each share group, in storage order."""
        groups: dict[str, list[PlannedMatrix]] = {}
        for matrix in self.matrices:
            if matrix.plan.share is not None:
                groups.setdefault(matrix.plan.share, []).append(matrix)
        return {name: tuple(members) for name, members in groups.items()}

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return int(self.recipe.get("seed", 0))

    @property
    def needs_statistics(self) -> bool:
        """Whether a compile needs measured statistics, as the recipe says."""
        return bool(self.recipe.get("statistics") == "required")

    def budget(self) -> Budget:
        """The exact sizes: per matrix, per term, and in total."""
        return budget_of(self)
