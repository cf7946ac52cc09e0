"""An open archive: one matrix at a time, without touching the rest.

    with open_archive("out.reallm") as archive:
        weight = archive.matrix("model.layers.0.self_attn.q_proj")   # [p, q]

Opening maps the file and checks its whole structure; a section's bytes are read, and its digest
checked, when they are asked for.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch

from reallm_compiler.codecs import decode_matrix, from_bytes
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.plan.budget import Budget
from reallm_compiler.plan.document import from_manifest
from reallm_compiler.plan.model import Plan, PlannedMatrix
from reallm_formats import Archive, Manifest, SectionEntry, names


class ModelArchive:
    """A model archive, open for reading. Use `open_archive`, and close it or use `with`.

    Attributes:
        path: the file.
        plan: what it stores, as the planner saw it.
    """

    def __init__(self, archive: Archive, path: Path) -> None:
        self._archive = archive
        self.path = path
        self.plan: Plan = from_manifest(archive.manifest, archive.layout)
        self._kept = {tensor.name: tensor for tensor in self.plan.tensors}
        self._parts: dict[str, list[PlannedMatrix]] = {}
        for matrix in self.plan.matrices:
            self._parts.setdefault(matrix.tensor, []).append(matrix)

    @property
    def manifest(self) -> Manifest:
        """The container's manifest."""
        return self._archive.manifest

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
        matrix = self._matrix_named(name)
        sections = {
            spec.role: from_bytes(self._archive.read(matrix.section_name(spec)), spec).to(device)
            for spec in matrix.specs
        }
        return decode_matrix(
            matrix.plan,
            matrix.shape,
            matrix.dtype,
            sections,
            dtype=dtype if dtype is not None else TORCH_DTYPES[matrix.dtype],
        )

    def tensor(
        self, name: str, *, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> torch.Tensor:
        """One tensor as the checkpoint has it: shape, orientation, and type unless `dtype`.

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
            data = self._archive.read(names.tensor_section(name))
            values = from_bytes(data, kept.spec).to(device)
            return values.to(dtype) if dtype is not None and values.is_floating_point() else values
        decoded = []
        for matrix in sorted(parts, key=lambda part: part.index or 0):
            values = self.matrix(matrix.name, dtype=dtype, device=device)
            decoded.append(values.t().contiguous() if matrix.transposed else values)
        return decoded[0] if parts[0].index is None else torch.stack(decoded)

    def state_dict(
        self, *, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """All stored tensors, one after another, so that a caller need not hold them all."""
        for name in self.tensor_names:
            yield name, self.tensor(name, dtype=dtype, device=device)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Embedded files: relative path and content."""
        for file in self.plan.files:
            yield file.path, bytes(self._archive.read(names.file_section(file.path)))

    def close(self) -> None:
        """Unmap the file."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _matrix_named(self, name: str) -> PlannedMatrix:
        matrix = self.plan.by_name.get(name.removesuffix(".weight"))
        if matrix is None:
            raise _unknown(name, self.names, "coded matrix")
        return matrix


def open_archive(path: str | os.PathLike[str]) -> ModelArchive:
    """Open a model archive.

    Raises:
        FormatError: the file breaks a rule of SPEC.md, or is no model archive.
    """
    archive = Archive.open(path)
    try:
        if archive.kind != "model":
            raise FormatError(
                "D1",
                f"this archive holds a `{archive.kind}`, not a `model`",
                location=str(path),
            )
        return ModelArchive(archive, Path(path))
    except BaseException:
        archive.close()
        raise


def _unknown(name: str, known: tuple[str, ...], what: str) -> SourceError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return SourceError(
        f"no {what} is called `{name}`",
        hint=f"nearest names: {', '.join(near)}" if near else None,
    )
