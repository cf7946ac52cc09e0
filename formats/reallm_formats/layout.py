"""Where everything will lie, known from the plan alone.

All that depends on data has a fixed width in the manifest (32 bytes a digest, 8 bytes a float), so
the manifest's length follows from names, types and shapes. One circle remains: offsets are
written in their shortest form, so the manifest's length depends on the offsets and they on its
length. `layout` takes the least length that agrees with itself; it is reached from below, since
a longer manifest never makes an offset shorter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from reallm_formats import canonical, names, v1
from reallm_formats.checks import typed
from reallm_formats.dtypes import section_bytes
from reallm_formats.errors import FormatError
from reallm_formats.kinds import check_document
from reallm_formats.manifest import Manifest, check_features
from reallm_formats.sections import (
    ROW_VALUES,
    Row,
    SectionEntry,
    check_number,
    check_row,
    check_unique,
    offsets_of,
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The plan of a file; the byte terms add up to `file_bytes`.

    Attributes:
        kind, features, document: as in `Manifest`.
        rows: name, type and shape of each section, in the file's order.
        manifest_bytes: length of the encoded manifest.
        section_bytes: bytes of all sections.
        padding_bytes: zeros between sections.
        file_bytes: length of the file.
    """

    kind: str
    features: tuple[str, ...]
    document: dict[str, Any]
    rows: Sequence[Row]
    manifest_bytes: int
    section_bytes: int
    padding_bytes: int
    file_bytes: int

    @property
    def header_bytes(self) -> int:
        """Length of the header."""
        return v1.HEADER_BYTES

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, with zeros for digests; made when it is first asked for."""
        sizes = [section_bytes(dtype, shape) for _, dtype, shape in self.rows]
        offsets, _ = offsets_of(sizes, v1.HEADER_BYTES + self.manifest_bytes)
        blank = bytes(v1.DIGEST_BYTES)
        entries = tuple(
            SectionEntry(name=name, dtype=dtype, shape=shape, offset=offset, sha256=blank)
            for (name, dtype, shape), offset in zip(self.rows, offsets, strict=True)
        )
        return Manifest(
            kind=self.kind, features=self.features, sections=entries, document=self.document
        )

    @cached_property
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
    plain, values = canonical.counted(document, depth=1)
    words = check_features(sorted(features))
    typed(kind, str, "M3", "manifest: kind")
    table = _measure(sections)
    check_number(len(table.rows))
    check_unique(table.rows)
    typed(plain, dict, "M1", "manifest: document")
    check_document(kind, plain, table.rows, newer=False)
    frame, frame_values = canonical.counted(Manifest(kind=kind, features=words).plain())
    # The empty document and the empty table take one byte each.
    rest = len(canonical.pack(frame)) - 2 + len(canonical.pack(plain))
    rest += _list_head(len(table.rows)) + table.nbytes
    length, end = _settle(rest, table.sizes)
    if length > v1.MAX_MANIFEST_BYTES or end > v1.MAX_FILE_BYTES:
        message = f"a manifest of {length} bytes or a file of {end} bytes is too long"
        raise FormatError("H5", message, location="layout")
    canonical.check_count(frame_values - 1 + values + table.values, length)
    stored = sum(table.sizes)
    return Layout(
        kind=kind,
        features=words,
        document=plain,
        rows=table.rows,
        manifest_bytes=length,
        section_bytes=stored,
        padding_bytes=end - v1.HEADER_BYTES - length - stored,
        file_bytes=end,
    )


class _Table(NamedTuple):
    """A section table before the sections have offsets.

    Attributes:
        rows: its rows.
        sizes: bytes of each section.
        nbytes: bytes of all rows in the manifest, without the offsets.
        values: values of all rows in the manifest.
    """

    rows: list[Row]
    sizes: list[int]
    nbytes: int
    values: int


def _measure(sections: Iterable[tuple[str, str, Sequence[int]]]) -> _Table:
    """The table of `sections`, checked row by row.

    A large model has a million sections, of a few types and shapes, and of names with few parts:
    what was once found right is not looked at again.
    """
    owners: dict[str, int] = {}  # bytes of `matrix:NAME/`
    roles: dict[str, int] = {}
    laws: dict[tuple[str, tuple[int, ...]], tuple[int, int, int]] = {}
    unknown = v1.MAX_NAME_BYTES + 1
    rows: list[Row] = []
    sizes: list[int] = []
    total = values = 0
    for index, (name, dtype, extents) in enumerate(sections):
        shape = tuple(extents)
        owner, _, role = str(name).rpartition("/")
        length = owners.get(owner, unknown) + roles.get(role, unknown)
        law = laws.get((dtype, shape))
        if law is None:
            check_row(name, dtype, list(shape), f"manifest: sections[{index}]")
            law = laws[dtype, shape] = _row_law(dtype, shape)
        if length > v1.MAX_NAME_BYTES:
            names.parse_name(name, f"manifest: sections[{index}].name")
            length = len(name.encode("utf-8"))
            if name.startswith((names.MATRIX, names.SHARE)):
                owners[owner], roles[role] = length - len(role), len(role)
        rows.append((name, dtype, shape))
        sizes.append(law[0])
        total += law[1] + length + (1 if length < 1 << 5 else 2 if length < 1 << 8 else 3)
        values += law[2]
    return _Table(rows, sizes, total, values)


def _row_law(dtype: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Bytes of a section; bytes of its row without name and offset, and values of the row."""
    digest = bytes(v1.DIGEST_BYTES)
    row = SectionEntry(name="", dtype=dtype, shape=shape, offset=0, sha256=digest)
    # The name, empty here, and the offset take one byte each.
    return row.nbytes, len(canonical.pack(row.plain())) - 2, ROW_VALUES + len(shape)


def _settle(rest: int, sizes: Sequence[int]) -> tuple[int, int]:
    """Length of the manifest and end of the file that agree with each other.

    Args:
        rest: bytes of the manifest without the offsets.
        sizes: bytes of each section.
    """
    # Places counted from the first section.
    *starts, _ = accumulate(map(v1.align, sizes), initial=0)
    length = 0
    while True:
        first = v1.align(v1.HEADER_BYTES + length)
        settled = rest + 9 * len(starts)
        for bits, saved in ((8, 1), (16, 2), (32, 4)):  # the shortest form that holds an offset
            settled -= saved * bisect_left(starts, (1 << bits) - first)
        if settled == length:
            end = first + starts[-1] + sizes[-1] if sizes else v1.HEADER_BYTES + length
            return length, end
        length = settled


def _list_head(count: int) -> int:
    """Bytes of the head of a list."""
    return 1 if count < 1 << 4 else 3 if count < 1 << 16 else 5
