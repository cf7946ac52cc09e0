"""Where everything will lie, known from the plan alone.

All that depends on data has a fixed width in the manifest (32 bytes a digest, 8 bytes a float), so
the manifest's length follows from names, types and shapes. One circle remains: offsets are
written in their shortest form, so the manifest's length depends on the offsets and they on its
length. `layout` takes the least length that agrees with itself; it is reached from below, since
a longer manifest never makes an offset shorter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reallm_formats import canonical, v1
from reallm_formats.dtypes import section_bytes
from reallm_formats.errors import FormatError
from reallm_formats.manifest import Manifest, encode_manifest, manifest_of
from reallm_formats.sections import SectionEntry, place_all


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The plan of a file; the byte terms add up to `file_bytes`.

    Attributes:
        manifest: the manifest, with zeros for digests and the document as it was given.
        manifest_bytes: length of the encoded manifest.
        section_bytes: bytes of all sections.
        padding_bytes: zeros between sections.
        file_bytes: length of the file.
    """

    manifest: Manifest
    manifest_bytes: int
    section_bytes: int
    padding_bytes: int
    file_bytes: int

    @property
    def header_bytes(self) -> int:
        """Length of the header."""
        return v1.HEADER_BYTES

    @property
    def sections(self) -> Mapping[str, SectionEntry]:
        """The section table by name, in the file's order."""
        return {section.name: section for section in self.manifest.sections}


def layout(
    *,
    kind: str,
    document: Mapping[str, Any],
    sections: Iterable[tuple[str, str, Sequence[int]]],
    features: Iterable[str] = (),
) -> Layout:
    """Lay out a file.

    Args:
        kind: what the archive is: `model` or `adapter`.
        document: its document; what depends on data holds a value of the final width, such as
            0.0 for an error. It is copied.
        sections: (name, dtype, shape) in the order of the file.
        features: features that a reader must know.

    Raises:
        FormatError: what was given breaks a rule, so no reader would accept the file.
    """
    rows = [
        {
            "name": name,
            "dtype": dtype,
            "shape": list(shape),
            "offset": 0,
            "sha256": bytes(v1.DIGEST_BYTES),
        }
        for name, dtype, shape in sections
    ]
    plain = {
        "kind": kind,
        "features": sorted(features),
        "sections": rows,
        "document": canonical.normal(document),
    }
    draft = manifest_of(plain)
    least = len(encode_manifest(draft))  # each offset takes one byte here
    sizes = [section_bytes(section.dtype, section.shape) for section in draft.sections]
    length, offsets, end = _settle(least - len(sizes), sizes)
    if length > v1.MAX_MANIFEST_BYTES or end > v1.MAX_FILE_BYTES:
        message = f"a manifest of {length} bytes or a file of {end} bytes is too long"
        raise FormatError("H5", message, location="layout")
    entries = tuple(
        SectionEntry(
            name=section.name,
            dtype=section.dtype,
            shape=section.shape,
            offset=offset,
            sha256=section.sha256,
        )
        for section, offset in zip(draft.sections, offsets, strict=True)
    )
    manifest = Manifest(
        kind=kind, features=draft.features, sections=entries, document=draft.document
    )
    stored = sum(sizes)
    return Layout(
        manifest=manifest,
        manifest_bytes=length,
        section_bytes=stored,
        padding_bytes=end - v1.HEADER_BYTES - length - stored,
        file_bytes=end,
    )


def _settle(rest: int, sizes: Sequence[int]) -> tuple[int, list[int], int]:
    """Length of the manifest, offsets and end of file that agree with each other.

    Args:
        rest: bytes of the manifest without the offsets.
        sizes: bytes of each section.
    """
    length = 0
    while True:
        offsets, end = place_all(sizes, v1.HEADER_BYTES + length)
        settled = rest + sum(map(_integer_bytes, offsets))
        if settled == length:
            return length, offsets, end
        length = settled


def _integer_bytes(value: int) -> int:
    """Bytes of an unsigned integer of at least 128 in its shortest form."""
    for bits in (8, 16, 32):
        if value < 1 << bits:
            return 1 + bits // 8
    return 9
