"""Parameters of the permutation: the order of the latent's columns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from reallm_compiler.stages.base import Stage


class PermutationStage(Stage):
    """Base of the kinds of permutation."""


class NoPermutation(PermutationStage):
    """Columns stay where they are."""

    kind: Literal["none"] = "none"

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


class NearestPermutation(PermutationStage):
    """Columns reordered so that each is followed by its nearest unplaced one (Algorithm 1)."""

    kind: Literal["nearest"]
    rows: int | Literal["all"] = Field(
        default=128,
        description="Rows that share one order; `all`: one order for the whole matrix.",
    )

    @field_validator("rows")
    @classmethod
    def _rows_positive(cls, rows: int | str) -> int | str:
        if isinstance(rows, int) and rows < 1:
            raise ValueError("rows must be at least 1, or `all`")
        return rows
