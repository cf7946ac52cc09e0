"""The section tensors of an open archive, or what stands for them.

A section is what stands in the file, unless an adapter in use replaces it, or a caller gave a
tensor of its own. The sections of a trained decoder that the archive does not hold are read from
the decoder's own file, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from reallm_compiler.codecs.decoder_file import read_decoder
from reallm_compiler.codecs.sections import read_section
from reallm_compiler.errors import AdapterError
from reallm_compiler.planning.decoders import find_decoder
from reallm_compiler.planning.learnable import learnable_sections
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.reader.adapter import AdapterArchive
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import MatrixLayout, layout_of
from reallm_formats import Archive

MatrixSections = tuple[MatrixLayout, dict[str, Tensor]]
"""The layout of a matrix, and its section tensors by role."""


class StoredSections:
    """Reads section tensors.

    Args:
        archive: the file.
        plan: what it stores.
        path: of the file; decoders are looked for beside it.
        decoder: where they are instead: a file, or a folder of files.

    Attributes:
        adapter: the adapter whose factors and gains replace the archive's own.
        replacing: tensors that stand for sections of the same names.
    """

    def __init__(self, archive: Archive, plan: Plan, path: Path, decoder: Path | None) -> None:
        self.adapter: AdapterArchive | None = None
        self.replacing: Mapping[str, Tensor] = {}
        self._archive = archive
        self._plan = plan
        self._path = path
        self._decoder = decoder
        self._reused: dict[str, dict[str, Tensor]] = {}

    def use(self, adapter: AdapterArchive | None) -> None:
        """Take an adapter; None for the archive's own.

        Raises:
            AdapterError: the adapter belongs to another base, or holds what the base has not.
        """
        if adapter is not None:
            self._check(adapter)
        self.adapter = adapter

    def section(self, matrix: PlannedMatrix, spec: SectionSpec) -> Tensor:
        """The tensor of a section of a matrix."""
        return self.values(matrix.section_name(spec), spec)

    def values(self, name: str, spec: SectionSpec) -> Tensor:
        """The tensor of a section by its name: what replaces it, else its own."""
        if name in self.replacing:
            return self.replacing[name]
        if self.adapter is not None and name in self.adapter.replaced:
            return self.adapter.section(name, spec)
        return read_section(self._archive, name, spec)

    def of_matrix(self, matrix: PlannedMatrix) -> MatrixSections:
        """All sections of a matrix, with the adapter in use."""
        if self.adapter is None or matrix.name not in self.adapter.rows:
            return self._of_plan(matrix, matrix.plan)
        plan = self.adapter.plan(matrix.name, matrix.plan)
        return self._of_plan(matrix, plan, self.adapter.sections(matrix.name))

    def of_coded_part(self, matrix: PlannedMatrix) -> MatrixSections:
        """The sections of what tuning never changes of a matrix."""
        return self._of_plan(matrix, frozen_plan(matrix.plan))

    def _of_plan(
        self,
        matrix: PlannedMatrix,
        plan: MatrixPlan,
        tuned: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> MatrixSections:
        """The sections of a matrix by a plan: those of an adapter where it has some."""
        layout = matrix.layout
        if plan is not matrix.plan:
            layout = layout_of(plan, matrix.shape, matrix.dtype)
        sections = {}
        for spec in layout.sections:
            found = tuned.get(spec.role)
            sections[spec.role] = found if found is not None else self.section(matrix, spec)
        sections |= self._of_reused_decoder(matrix)
        if "column_gain" in tuned:  # which no plan of an archive has
            sections["column_gain"] = tuned["column_gain"]
        return layout, sections

    def _of_reused_decoder(self, matrix: PlannedMatrix) -> dict[str, Tensor]:
        """Sections of the decoder that a plan uses from an archive of its own; mostly none."""
        digest = matrix.plan.autoencoder.reused
        if digest is None:
            return {}
        if digest not in self._reused:
            file = find_decoder(digest, self._path, self._decoder)
            specs = matrix.layout.reused_sections
            self._reused[digest] = read_decoder(file.path, digest, specs)
        return self._reused[digest]

    def _check(self, adapter: AdapterArchive) -> None:
        """Refuse an adapter that does not fit; see `use`."""
        adapter.check_base(self._archive.digest)
        for row in adapter.rows.values():
            matrix = self._plan.by_name.get(row.name)
            if matrix is None or matrix.shape != row.shape:
                raise AdapterError(
                    f"the base has no matrix {row.name} of {row.shape[0]} x {row.shape[1]}",
                    location=str(adapter.path),
                )
        known = learnable_sections(self._plan) if adapter.replaced else {}
        for name, (dtype, shape) in adapter.replaced.items():
            one = known.get(name)
            if one is None or (one.spec.dtype, one.spec.shape) != (dtype, shape):
                raise AdapterError(
                    f"the base has no section {name} of type {dtype} and extents "
                    f"{list(shape)} that an adapter may replace",
                    location=str(adapter.path),
                )


def frozen_plan(plan: MatrixPlan) -> MatrixPlan:
    """The plan of what tuning never changes: what is left without factors and gains."""
    return plan.with_factors(None, dora=False)
