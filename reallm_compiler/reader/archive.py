"""An open archive: one matrix at a time, without touching the rest.

    with open_archive("out.reallm") as archive:
        weight = archive.matrix("model.layers.0.self_attn.q_proj")   # [p, q]

Opening maps the file and checks its whole structure; a section's bytes are read, and its digest
checked, when they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from reallm_compiler.codecs import decode_matrix
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.planning.budget import Budget
from reallm_compiler.planning.cost import check_cost
from reallm_compiler.planning.decoders import DecoderFile, find_decoders
from reallm_compiler.planning.document import from_manifest
from reallm_compiler.planning.learnable import LearnableSection
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.reader.adapter import AdapterArchive, open_adapter
from reallm_compiler.reader.stored import StoredSections
from reallm_compiler.storage import dora as dora_storage
from reallm_compiler.storage.matrix import MatrixLayout
from reallm_formats import Archive, Closing, Manifest, SectionEntry, Verify, names


class ModelArchive(Closing):
    """A model archive, open for reading. Use `open_archive`, and close it or use `with`.

    Attributes:
        path: the file.
        plan: what it stores, as the planner saw it.
    """

    def __init__(self, archive: Archive, path: Path, decoder: Path | None = None) -> None:
        self._archive = archive
        self.path = path
        self._decoder = decoder
        self.plan: Plan = from_manifest(archive.manifest, archive.layout)
        self._sections = StoredSections(archive, self.plan, path, decoder)
        self._kept = {tensor.name: tensor for tensor in self.plan.tensors}
        self._parts: dict[str, list[PlannedMatrix]] = {}
        for matrix in self.plan.matrices:
            self._parts.setdefault(matrix.tensor, []).append(matrix)

    def __repr__(self) -> str:
        return f"ModelArchive({str(self.path)!r}, {len(self.plan.matrices)} coded matrices)"

    @property
    def manifest(self) -> Manifest:
        """The container's manifest."""
        return self._archive.manifest

    @property
    def adapter(self) -> AdapterArchive | None:
        """The adapter whose factors and gains replace the archive's own; None without one."""
        return self._sections.adapter

    @property
    def digest(self) -> bytes:
        """SHA-256 of header and manifest, which names every byte of the archive."""
        return self._archive.digest

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coded matrices, in storage order."""
        return tuple(self.plan.by_name)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all stored checkpoint tensors; ties are not among them."""
        kept = tuple(tensor.name for tensor in self.plan.tensors)
        return kept + tuple(self._parts)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as plain data, without `model` and `output`."""
        return self.plan.recipe

    @property
    def provenance(self) -> Mapping[str, str]:
        """Software, processor and the digest of the weights that were read."""
        stored = self.manifest.document["provenance"]
        return MappingProxyType(
            {
                key: value.hex() if isinstance(value, bytes) else str(value).rstrip()
                for key, value in stored.items()
            }
        )

    @property
    def errors(self) -> Mapping[str, float]:
        """Relative error ||W - W^|| / ||W|| of each coded matrix, measured at encode time."""
        rows = self.manifest.document["matrices"]
        return MappingProxyType({row["name"]: row["relative_error"] for row in rows})

    def budget(self) -> Budget:
        """Exact sizes of what is stored."""
        return self.plan.budget()

    def find_decoders(self) -> Mapping[str, DecoderFile]:
        """The files of trained decoders that the archive uses but does not hold, by digest.

        Raises:
            SourceError: one is not where it is looked for, or the file is another decoder.
            FormatError: a file is no decoder, or a broken one.
        """
        return find_decoders(self.plan, self.path, self._decoder)

    def sections_of(self, name: str) -> tuple[SectionEntry, ...]:
        """Sections of a coded matrix, those of its share group included."""
        matrix = self._matrix_named(name)
        entries = self._archive.sections
        return tuple(entries[matrix.section_name(spec)] for spec in matrix.specs)

    def matrix(
        self, name: str, *, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> torch.Tensor:
        """One decoded matrix [p, q], rows are outputs.

        Args:
            name: one of `names`.
            dtype: the checkpoint's own when None.
            device: where it is decoded.

        Raises:
            SourceError: no matrix has this name.
            FormatError: a section of it is damaged.
        """
        layout, sections = self.stored(name)
        return self._decode(self._matrix_named(name), layout, sections, dtype, device)

    def stored(self, name: str) -> tuple[MatrixLayout, dict[str, torch.Tensor]]:
        """Layout and section tensors of a matrix by role, undecoded, with the adapter in use.

        Those of its share group and of a reused decoder are among them, and `column_gain` where
        the adapter has some. Opened with `private=True`, they are the file's own pages.

        Raises:
            SourceError: no matrix has this name.
            FormatError: a section of it is damaged.
        """
        return self._sections.of_matrix(self._matrix_named(name))

    def coded(
        self, name: str, *, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> torch.Tensor:
        """The part of a matrix [p, q] without factors: none are added, no row is rescaled.

        It is what tuning never changes. Arguments and errors are those of `matrix`.
        """
        layout, sections = self.coded_sections(name)
        return self._decode(self._matrix_named(name), layout, sections, dtype, device)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The archive's own L1 [p, r] and L2 [r, q] as float32; None without factors."""
        matrix = self._matrix_named(name)
        stage = matrix.plan.factors
        if stage is None:
            return None
        specs = matrix.layout.sections_of(stage)
        sections = {spec.role: self._sections.section(matrix, spec) for spec in specs}
        term = codec_of(stage).decoder(stage, matrix.shape, sections, torch.float32)
        factors: tuple[torch.Tensor, torch.Tensor] | None = term.factors
        return factors

    def gain(self, name: str) -> torch.Tensor | None:
        """The archive's own DoRA gains [p] as float32; None if the matrix has none."""
        matrix = self._matrix_named(name)
        if not matrix.plan.dora:
            return None
        (spec,) = dora_storage.sections(matrix.shape)
        return self._sections.section(matrix, spec).to(torch.float32)

    def tensor(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        coded_only: bool = False,
    ) -> torch.Tensor:
        """One tensor as the checkpoint has it: shape, orientation, and type unless `dtype`.

        Args:
            name: one of `tensor_names`, or a tie to one.
            dtype: the checkpoint's own when None.
            device: where it is decoded.
            coded_only: give the coded part alone of coded matrices (see `coded`).

        Raises:
            SourceError: no tensor has this name.
            FormatError: a section of it is damaged.
        """
        name = self.plan.ties.get(name, name)
        parts = self._parts.get(name)
        if parts is None:
            kept = self._kept.get(name)
            if kept is None:
                raise _unknown(name, self.tensor_names, "tensor")
            values = self._sections.values(names.tensor_section(name), kept.spec).to(device)
            return values.to(dtype) if dtype is not None and values.is_floating_point() else values
        decoded = []
        for matrix in sorted(parts, key=lambda part: part.index or 0):
            decode = self.coded if coded_only else self.matrix
            values = decode(matrix.name, dtype=dtype, device=device)
            decoded.append(values.t().contiguous() if matrix.transposed else values)
        return decoded[0] if parts[0].index is None else torch.stack(decoded)

    def shape_of(self, name: str) -> tuple[tuple[int, ...], str]:
        """Extents of a tensor of `tensor_names` as the checkpoint has them, and its type."""
        if name in self._kept:
            return self._kept[name].shape, self._kept[name].dtype
        parts = self._parts[name]
        p, q = parts[0].shape
        extents = (q, p) if parts[0].transposed else (p, q)
        return extents if parts[0].index is None else (len(parts), *extents), parts[0].dtype

    def state_dict(
        self, *, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """All stored tensors, one after another, so that a caller need not hold them all."""
        for name in self.tensor_names:
            yield name, self.tensor(name, dtype=dtype, device=device)

    def section(self, name: str) -> memoryview:
        """The bytes of one section as they are stored, its digest checked."""
        return self._archive.read(name)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Embedded files: relative path and content."""
        for file in self.plan.files:
            yield file.path, bytes(self._archive.read(names.file_section(file.path)))

    def values(self, section: LearnableSection) -> torch.Tensor:
        """The stored numbers of a section that tuning may change, those of the adapter in use."""
        return self._sections.values(section.name, section.spec)

    def coded_sections(self, name: str) -> tuple[MatrixLayout, dict[str, torch.Tensor]]:
        """Layout and section tensors of the coded part alone of a matrix, by role."""
        return self._sections.of_coded_part(self._matrix_named(name))

    def replace(self, sections: Mapping[str, torch.Tensor]) -> None:
        """Let these tensors stand for sections of the same names, in their stored types."""
        self._sections.replacing = dict(sections)

    def use(self, adapter: AdapterArchive | None) -> None:
        """Let `matrix` and all that rests on it take the parts of an adapter; None: its own.

        The adapter is closed together with the archive.

        Raises:
            AdapterError: the adapter belongs to another base, or holds what the base has not.
        """
        self._sections.use(adapter)

    @property
    def checking(self) -> bool:
        """With `verify="later"`: whether something that was read is still to be checked.

        Raises:
            FormatError: a section that was read is damaged.
        """
        return self._archive.checking or (self.adapter is not None and self.adapter.checking)

    def check(self) -> None:
        """With `verify="later"`: wait until all that was read is checked, the adapter's too.

        Raises:
            FormatError: a section that was read is damaged.
        """
        self._archive.check()
        if self.adapter is not None:
            self.adapter.check()

    def close(self) -> None:
        """Unmap the file.

        Raises:
            FormatError: with `verify="later"`, a section is damaged and was not reported yet.
        """
        try:
            self._archive.close()
        finally:
            if self.adapter is not None:
                self.adapter.close()

    def _decode(
        self,
        matrix: PlannedMatrix,
        layout: MatrixLayout,
        sections: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None,
        device: str,
    ) -> torch.Tensor:
        """`matrix` of these sections."""
        columns = dora_storage.column_sections(matrix.shape)
        decoded = decode_matrix(
            layout.plan,
            matrix.shape,
            matrix.dtype,
            {role: values.to(device) for role, values in sections.items()},
            dtype=dtype if dtype is not None else TORCH_DTYPES[matrix.dtype],
            tuned=columns if "column_gain" in sections else [],
            layout=layout,
        )
        if not _finite(decoded):
            raise FormatError(
                "P5",
                f"the matrix `{matrix.name}` decodes to numbers that are not finite",
                location=str(self.path),
            )
        return decoded

    def _matrix_named(self, name: str) -> PlannedMatrix:
        by_name = self.plan.by_name
        matrix = by_name.get(name, by_name.get(name.removesuffix(".weight")))
        if matrix is None:
            raise _unknown(name, self.names, "coded matrix")
        return matrix


def open_archive(
    path: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    verify: Verify = "now",
    private: bool = False,
) -> ModelArchive:
    """Open a model archive.

    Args:
        path: the archive.
        adapter: an adapter whose factors and gains replace the archive's own.
        decoder: where the trained decoders are that the archive uses but does not hold: a file,
            or a folder of files. When None they are looked for beside the archive, when a matrix
            that needs one is read.
        allow_cost: open it even if decoding it would take longer, or more memory, than a file
            of its length may ask for (`planning.cost`).
        verify: when digests of sections are checked: `now`, before their bytes are used, or
            `later`, in the background. Then damage is raised by the next call that reads, by
            `check`, or when the archive is closed.
        private: give out section tensors and kept tensors as copy-on-write pages of the files.

    Raises:
        FormatError: a file breaks a rule of SPEC.md, or is no model archive; or costs too much.
        AdapterError: the adapter belongs to another base.
        SourceError: `decoder` is not, or does not hold, what the archive needs; or it needs none.
    """
    archive = Archive.open(path, verify=verify, private=private)
    try:
        if archive.kind != "model":
            raise FormatError(
                "D1",
                f"this archive holds a `{archive.kind}`, not a `model`",
                location=str(path),
            )
        given = Path(decoder) if decoder is not None else None
        try:
            opened = ModelArchive(archive, Path(path), given)
            if not allow_cost:
                check_cost(opened.plan)
        except FormatError as error:
            raise error.inside(str(path)) from None
        if decoder is not None:
            opened.find_decoders()
        if adapter is not None:
            tuned = open_adapter(adapter, verify=verify, private=private)
            try:
                opened.use(tuned)
            except BaseException:
                tuned.close()
                raise
        return opened
    except BaseException:
        archive.close()
        raise


def _finite(values: torch.Tensor) -> bool:
    """Whether all values are finite; the extremes of a tensor show a NaN, too."""
    if values.element_size() == 1:
        values = values.to(torch.float32)
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _unknown(name: str, known: tuple[str, ...], what: str) -> SourceError:
    return SourceError(
        f"no {what} is called `{name}`", hint=did_you_mean(nearest(name, known, cutoff=0.4))
    )
