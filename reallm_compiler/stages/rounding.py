"""Parameters of the rounding: how codes are chosen for the scaled latent."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from reallm_compiler.stages.base import Rational, Stage


class RoundingStage(Stage):
    """Base of the kinds of rounding.

    Attributes:
        alone: each code is chosen by its own part of the latent, whatever became of the others.
    """

    alone: ClassVar[bool] = False

    @property
    def recodes(self) -> bool:
        """Whether codes of some columns are chosen again, the others as they are."""
        return False

    @property
    def choices(self) -> int:
        """How often each code is chosen, at most."""
        return 1


class NearestRounding(RoundingStage):
    """Each code is the nearest one, or the path of least error; no data is needed."""

    alone: ClassVar[bool] = True

    kind: Literal["nearest"] = "nearest"

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


class FeedbackRounding(RoundingStage):
    """Errors are carried into what is not coded yet, in the metric of measured statistics.

    The error E of a matrix is weighed by the Gram matrix H of its inputs, and with `sides: both`
    by that of the loss gradients G at its outputs too: tr(G E H E^T), the Kronecker form of the
    Fisher information. With a scalar quantizer and `sides: input` this is GPTQ (Frantar et al.
    2022, LDLQ of QuIP).
    """

    kind: Literal["feedback"]
    sides: Literal["input", "both"] = Field(
        default="both",
        description="input: errors move later columns of the same row. both: they also move the "
        "rows below, by the gradients at the outputs.",
    )
    damping: Rational = Field(
        default=Fraction(3, 100),
        description="Share of the mean diagonal that is added to the diagonal of the input metric.",
    )
    damping_output: Rational = Field(
        default=Fraction(1, 10), description="The same for the output metric."
    )
    sweeps: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="How often the codes of each group of columns are chosen again afterwards, "
        "with all others as they are, at most (coordinate descent: QuIP#, AQLM); for `sides: "
        "input`.",
    )
    rows: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="Rows that are coded together before their errors move the rows below.",
    )

    @property
    def needs_statistics(self) -> bool:
        """Yes."""
        return True

    @property
    def recodes(self) -> bool:
        """In sweeps."""
        return self.sweeps > 0

    @property
    def choices(self) -> int:
        """Once, and in every sweep."""
        return 1 + self.sweeps

    @model_validator(mode="after")
    def _sweeps_along_the_inputs(self) -> FeedbackRounding:
        if self.sweeps and self.sides != "input":
            raise ValueError("`sweeps` change codes along the inputs: use `sides: input`")
        return self

    @field_validator("damping", "damping_output")
    @classmethod
    def _damping_in_range(cls, damping: int | Fraction) -> int | Fraction:
        if not 0 <= damping <= 1000:
            raise ValueError("damping must lie between 0 and 1000")
        return damping
