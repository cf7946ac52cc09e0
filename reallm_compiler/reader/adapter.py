"""An open adapter: what was tuned of one base, one matrix at a time.

    with open_adapter("legal.adapter") as adapter:
        adapter.check_base(base.digest)
        parts = adapter.parts("model.layers.0.self_attn.q_proj")    # l1, l2, gain, column_gain

An adapter is bound to the bytes of its base: the same factors over other codes are another model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs.residuals import low_rank
from reallm_compiler.codecs.sections import read_section
from reallm_compiler.errors import AdapterError
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage import adapter as adapter_storage
from reallm_compiler.storage.base import SectionSpec
from reallm_formats import AdapterEntry, Archive, Closing, Manifest, Verify, names


class AdapterArchive(Closing):
    """An adapter, open for reading. Use `open_adapter`, and close it or use `with`.

    Attributes:
        path: the file.
        rows: factors and gains that it holds for each matrix, by name.
        replaced: (type, extents) of the sections that it replaces, by name.
    """

    def __init__(self, archive: Archive, path: Path) -> None:
        self._archive = archive
        self.path = path
        self._document = archive.adapter
        self.rows: Mapping[str, AdapterEntry] = {row.name: row for row in self._document.matrices}
        self.replaced: Mapping[str, tuple[str, tuple[int, ...]]] = {
            name: (dtype, tuple(shape)) for name, dtype, shape in self._document.replaced
        }

    def __repr__(self) -> str:
        return f"AdapterArchive({str(self.path)!r}, {len(self.rows)} matrices)"

    @property
    def manifest(self) -> Manifest:
        """The container's manifest."""
        return self._archive.manifest

    @property
    def digest(self) -> bytes:
        """SHA-256 of header and manifest, which names every byte of the adapter."""
        return self._archive.digest

    @property
    def base(self) -> bytes:
        """The digest of the model archive that it belongs to."""
        return self._document.base

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its matrices, in storage order."""
        return tuple(self.rows)

    @property
    def settings(self) -> Mapping[str, Any]:
        """How it was made."""
        return self._document.settings

    def check_base(self, digest: bytes) -> None:
        """Refuse a base that is not the adapter's own.

        Raises:
            AdapterError: names both digests.
        """
        if digest != self.base:
            raise AdapterError(
                "this adapter belongs to another base",
                location=str(self.path),
                note=f"it was tuned on {self.base.hex()}, and this base is {digest.hex()}",
                hint="`reallm inspect` shows the digest of an archive",
            )

    def plan(self, name: str, plan: MatrixPlan) -> MatrixPlan:
        """The plan of a matrix of the base with this adapter's factors and gains."""
        row = self.rows[name]
        factors = adapter_storage.residual(row) if row.rank else None
        return plan.with_factors(factors, dora=row.gain)

    def sections(self, name: str) -> dict[str, Tensor]:
        """The section tensors of a matrix, by role.

        Raises:
            FormatError: a section is damaged, or holds what it cannot mean.
        """
        return {
            spec.role: read_section(self._archive, names.matrix_section(name, spec.role), spec)
            for spec in adapter_storage.sections(self.rows[name])
        }

    def parts(self, name: str) -> dict[str, Tensor]:
        """float32 `l1` [p, r], `l2` [r, q], `gain` [p], `column_gain` [q], as far as there are."""
        row, sections = self.rows[name], self.sections(name)
        parts: dict[str, Tensor] = {}
        if row.rank:
            parts["l1"], parts["l2"] = low_rank.decode(
                adapter_storage.residual(row), sections, torch.float32
            )
        if row.gain:
            parts["gain"] = sections["gain"].to(torch.float32)
        if row.column_gain:
            parts["column_gain"] = sections["column_gain"].to(torch.float32)
        return parts

    def section(self, name: str, spec: SectionSpec) -> Tensor:
        """The tensor of a section that it replaces.

        Raises:
            FormatError: the section is damaged, or holds what it cannot mean.
        """
        return read_section(self._archive, name, spec)

    @property
    def checking(self) -> bool:
        """Whether something that was read is still to be checked; see `ModelArchive.checking`."""
        return self._archive.checking

    def check(self) -> None:
        """Wait until all that was read is checked; see `ModelArchive.check`."""
        self._archive.check()

    def close(self) -> None:
        """Unmap the file; FormatError of unreported damage that `verify="later"` found."""
        self._archive.close()


def open_adapter(
    path: str | os.PathLike[str], *, verify: Verify = "now", private: bool = False
) -> AdapterArchive:
    """Open an adapter; `verify` and `private` as for `open_archive`.

    Raises:
        FormatError: the file breaks a rule of SPEC.md.
        AdapterError: it is an archive of another kind.
    """
    archive = Archive.open(path, verify=verify, private=private)
    try:
        if archive.kind != "adapter":
            raise AdapterError(
                f"this archive holds a `{archive.kind}`, not an adapter", location=str(path)
            )
        return AdapterArchive(archive, Path(path))
    except BaseException:
        archive.close()
        raise
