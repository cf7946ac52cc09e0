"""An archive as tables show it: its plan, and the bytes that really stand in it.

Nothing here needs torch or reads a weight, so it answers at once on any file. The planned sizes
come from the plan inside the archive by the size laws; the stored ones from the file's header, its
table of sections and its length.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.planning.decoders import PREFIX, find_decoder, find_decoders, used_decoders
from reallm_compiler.planning.document import from_manifest
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.planning.sizes import shared_parts
from reallm_formats import Archive, Manifest, SectionEntry, layout, names
from reallm_formats.errors import printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Bytes that really stand in a file, counted from its own table of sections.

    Attributes:
        matrices: bytes of each coded matrix, with its part of what its group shares.
        coded, kept, other: bytes of all coded matrices, kept tensors, and embedded files.
        header, manifest, padding: the container's own.
        file: length of the file, from the file system.
    """

    matrices: Mapping[str, int]
    coded: int
    kept: int
    other: int
    header: int
    manifest: int
    padding: int
    file: int


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Facts of an archive, read from its header and manifest.

    Attributes:
        path: the file, as it was given.
        major, minor: version of the format.
        digest: SHA-256 of header and manifest, which names every byte of the file.
        manifest: the manifest.
        plan: the plan inside.
        stored: bytes that stand in the file.
    """

    path: str
    major: int
    minor: int
    digest: bytes
    manifest: Manifest
    plan: Plan
    stored: Stored

    @cached_property
    def sections(self) -> Mapping[str, SectionEntry]:
        """The table of sections, by name."""
        return {entry.name: entry for entry in self.manifest.sections}

    @cached_property
    def errors(self) -> dict[str, float]:
        """Relative error of each coded matrix, as measured when it was encoded."""
        return {row["name"]: row["relative_error"] for row in self.manifest.document["matrices"]}

    @property
    def provenance(self) -> dict[str, str]:
        """What made the archive: digests as hex, texts without their padding."""
        return provenance_text(self.manifest.document["provenance"])

    def find_decoders(self, given: str | None = None) -> dict[str, str | None]:
        """Files of the trained decoders that the archive uses but does not hold, by digest.

        None stands for one that is not beside the archive. Where `given` names a file or a
        folder, it must be there.

        Raises:
            SourceError, FormatError: what was given is not what the archive needs.
        """
        archive = Path(self.path)
        if given is not None:
            found = find_decoders(self.plan, archive, Path(given))
            return {_hex(digest): str(file.path) for digest, file in found.items()}
        files: dict[str, str | None] = {}
        for digest in used_decoders(self.plan):
            try:
                files[_hex(digest)] = str(find_decoder(digest, archive).path)
            except (SourceError, FormatError):
                files[_hex(digest)] = None
        return files

    def sections_of(self, matrix: PlannedMatrix) -> tuple[SectionEntry, ...]:
        """Sections of a coded matrix, those of its share group included."""
        table = self.sections
        return tuple(table[matrix.section_name(spec)] for spec in matrix.specs)


def open_facts(path: str) -> Opened:
    """Read the header and the manifest of a model archive.

    Raises:
        FormatError: the file breaks a rule of its format, or is no model archive.
    """
    with Archive.open(path) as archive:
        manifest, header = archive.manifest, archive.header
    if manifest.kind != "model":
        raise FormatError(
            "M3",
            f"this is an archive of kind `{manifest.kind}`, not a model",
            location=path,
            hint=f"`reallm inspect {path}` shows what it is",
        )
    planned = layout(
        kind=manifest.kind,
        features=manifest.features,
        document=manifest.document,
        sections=[(entry.name, entry.dtype, entry.shape) for entry in manifest.sections],
    )
    try:
        plan = from_manifest(manifest, planned)
    except FormatError as error:
        raise error.inside(path) from None
    return Opened(
        path=path,
        major=header.major,
        minor=header.minor,
        digest=header.digest,
        manifest=manifest,
        plan=plan,
        stored=_stored(plan, manifest, planned.header_bytes, header.manifest_bytes, path),
    )


def provenance_text(stored: Mapping[str, Any]) -> dict[str, str]:
    """What made an archive: digests as hex, texts without their padding, each on one line."""
    return {
        printable(key): value.hex() if isinstance(value, bytes) else printable(str(value).strip())
        for key, value in sorted(stored.items())
    }


def _hex(digest: str) -> str:
    """A digest as `reallm inspect` shows that of an archive."""
    return digest.removeprefix(PREFIX)


def _stored(plan: Plan, manifest: Manifest, header: int, manifest_bytes: int, path: str) -> Stored:
    table = {entry.name: entry for entry in manifest.sections}
    matrices = {
        matrix.name: sum(
            table[matrix.section_name(spec)].nbytes for spec in matrix.specs if not spec.shared
        )
        for matrix in plan.matrices
    }
    parts = shared_parts(plan, lambda matrix, spec: table[matrix.section_name(spec)].nbytes)
    for name, own in parts.items():
        matrices[name] += sum(own)
    kept = sum(entry.nbytes for entry in table.values() if entry.name.startswith(names.TENSOR))
    other = sum(entry.nbytes for entry in table.values() if entry.name.startswith(names.FILE))
    # The rest of the table, not what the matrices add up to: a section that belongs to no
    # matrix must show as a difference.
    coded = sum(entry.nbytes for entry in table.values()) - kept - other
    size = os.stat(path).st_size
    return Stored(
        matrices=matrices,
        coded=coded,
        kept=kept,
        other=other,
        header=header,
        manifest=manifest_bytes,
        padding=size - header - manifest_bytes - coded - kept - other,
        file=size,
    )
