"""The parts of a plan: matrices that will be coded, tensors and files that are kept."""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import MatrixLayout
from reallm_formats import names


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedMatrix:
    """One matrix that will be coded.

    Attributes:
        name: the checkpoint's tensor name without `.weight`, with the expert's number for a part
            of a 3-D tensor.
        tensor: the checkpoint's tensor.
        index: which part of a 3-D tensor, or None for a 2-D one.
        transposed: the checkpoint stores [q, p] (GPT-2's Conv1D).
        layout: what it stores, and what that costs; one object for all matrices that are alike.
    """

    name: str
    tensor: str
    index: int | None
    transposed: bool
    layout: MatrixLayout

    @property
    def plan(self) -> MatrixPlan:
        """The stages."""
        return self.layout.plan

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q), rows are outputs."""
        return self.layout.shape

    @property
    def dtype(self) -> str:
        """Type of the checkpoint's weights, and of what the reader gives back."""
        return self.layout.source_dtype

    @property
    def numel(self) -> int:
        """Number of weights, p q."""
        return self.shape[0] * self.shape[1]

    @property
    def specs(self) -> tuple[SectionSpec, ...]:
        """Sections that the matrix stores, its group's shared ones included."""
        return self.layout.sections

    def section_name(self, spec: SectionSpec) -> str:
        """The archive's name of one of `specs`."""
        if spec.shared and self.plan.share is not None:
            return names.share_section(self.plan.share, spec.role)
        return names.matrix_section(self.name, spec.role)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTensor:
    """A tensor kept as it is, or cast to another float type.

    Attributes:
        name: the checkpoint's tensor name.
        dtype: stored type.
        shape: its extents.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def spec(self) -> SectionSpec:
        """The section that holds it."""
        return SectionSpec(role="tensor", dtype=self.dtype, shape=self.shape, term="kept")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedFile:
    """A file of the checkpoint that travels inside the archive.

    Attributes:
        path: path relative to the checkpoint's folder.
        nbytes: its length.
    """

    path: str
    nbytes: int
