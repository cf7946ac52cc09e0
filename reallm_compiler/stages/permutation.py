"""Parameters of the permutation: the order of the latent's columns and rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from reallm_compiler.stages.base import Stage

Sides = Annotated[
    Literal["columns", "rows", "both"],
    Field(description="What is put in order: columns, rows, or both."),
]


def _positive(rows: int | str) -> int | str:
    if isinstance(rows, int) and rows < 1:
        raise ValueError("rows must be at least 1, or `all`")
    return rows


Rows = Annotated[
    int | Literal["all"],
    AfterValidator(_positive),
    Field(description="Rows that share one order; `all`: one order for the whole matrix."),
]


class PermutationStage(Stage):
    """Base of the kinds of permutation."""

    @property
    def rows_in_order(self) -> Rows:
        """Rows that share one order of the columns."""
        return "all"


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
    rows: Rows = 128

    @property
    def rows_in_order(self) -> Rows:
        """As given."""
        return self.rows


class NormSortedPermutation(PermutationStage):
    """Columns or rows by their norms, largest first, so that groups hold weights of one size."""

    kind: Literal["norm_sorted"]
    sides: Sides = "columns"
    rows: Rows = "all"

    @property
    def rows_in_order(self) -> Rows:
        """As given."""
        return self.rows


class ActOrderPermutation(PermutationStage):
    """Columns by the mean square of their inputs, largest first (GPTQ's act-order).

    Rounding with feedback so codes first what costs most, while most is left to make up for it.
    Rows likewise by the mean square of the loss gradients at their outputs.
    """

    kind: Literal["act_order"]
    sides: Sides = "columns"

    @property
    def rows(self) -> Rows:
        """One order of the columns for all rows."""
        return "all"

    @property
    def needs_statistics(self) -> bool:
        """Yes."""
        return True
