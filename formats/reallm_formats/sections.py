"""The section table: what each section is, and where the whole of them lie.

Sections follow the manifest in the table's order, each at the next multiple of 64, with zeros
between: no holes, no overlap, no tail. So a table has one valid set of offsets, and no byte of
the file belongs to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from reallm_formats import names, v1
from reallm_formats.checks import closed_map, typed
from reallm_formats.dtypes import BITS, CODES, section_bytes
from reallm_formats.errors import FormatError

KEYS: Final = ("dtype", "name", "offset", "sha256", "shape")
ROW_VALUES: Final = 1 + 2 * len(KEYS)
"""Values of a row in the manifest, without the extents: the map, its keys, what they lead to."""

Digest = bytes
Row = tuple[str, str, tuple[int, ...]]
"""Name, element type and shape of a section, wherever it lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionEntry:
    """A row of the section table.

    Attributes:
        name: what the section holds (`reallm_formats.names`).
        dtype: element type (`reallm_formats.dtypes`).
        shape: extents in elements; `()` is one element.
        offset: first byte in the file.
        sha256: digest of the section's bytes; zeros while the file is only laid out.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    sha256: Digest

    @property
    def row(self) -> Row:
        """What the section is, without its offset."""
        return self.name, self.dtype, self.shape

    @property
    def nbytes(self) -> int:
        """Stored bytes, by the size law of `reallm_formats.dtypes`."""
        return section_bytes(self.dtype, self.shape)

    @property
    def end(self) -> int:
        """The first byte after the section."""
        return self.offset + self.nbytes

    @property
    def location(self) -> str:
        """The section as error messages name it."""
        return f"section {self.name}, byte {self.offset}"

    @property
    def spare_bits(self) -> int:
        """Bits of the last byte that hold no element; they are zero."""
        return -self._bits() % 8

    def _bits(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count * BITS[self.dtype]

    def plain(self) -> dict[str, Any]:
        """The row as the manifest stores it, in normal form: keys in sorted order."""
        return {
            "dtype": self.dtype,
            "name": self.name,
            "offset": self.offset,
            "sha256": self.sha256,
            "shape": list(self.shape),
        }


def parse_entry(value: object, where: str, *, newer: bool) -> SectionEntry:
    """A row from decoded data; its offset is checked by `check_order`.

    Raises:
        FormatError: rules S2, S3, S5, S6, S7, S8, S10, M2.
    """
    items = closed_map(value, KEYS, "S1", where, newer=newer)
    name, dtype, shape = check_row(items["name"], items["dtype"], items["shape"], where)
    offset = typed(items["offset"], int, "S8", f"{where}.offset")
    sha256 = typed(items["sha256"], bytes, "S10", f"{where}.sha256")
    if len(sha256) != v1.DIGEST_BYTES:
        message = f"a digest has {v1.DIGEST_BYTES} bytes, not {len(sha256)}"
        raise FormatError("S10", message, location=f"{where}.sha256")
    return SectionEntry(name=name, dtype=dtype, shape=shape, offset=offset, sha256=sha256)


def check_row(name: object, dtype: object, shape: object, where: str) -> Row:
    """A section from decoded data (rules S1, S2, S3, S5, S6, S7); `shape` is a list."""
    typed(name, str, "S1", f"{where}.name")
    names.parse_name(str(name), f"{where}.name")
    typed(dtype, str, "S6", f"{where}.dtype")
    if dtype not in BITS:
        raise FormatError(
            "S6",
            f"the element type `{dtype}` of `{name}` is not known",
            location=f"{where}.dtype",
            hint="a newer reallm may know it",
        )
    return str(name), str(dtype), check_shape(shape, str(dtype), f"{where}.shape")


def check_shape(value: object, dtype: str, where: str) -> tuple[int, ...]:
    """A shape from decoded data (rule S7); `dtype` is known.

    The product is taken with 1 in place of 0, so that no reader overflows on the way to 0.
    """
    extents = typed(value, list, "S7", where)
    if len(extents) > v1.MAX_RANK:
        message = f"a shape has {len(extents)} extents; {v1.MAX_RANK} are allowed"
        raise FormatError("S7", message, location=where)
    bits = BITS[dtype]
    for index, extent in enumerate(extents):
        typed(extent, int, "S7", f"{where}[{index}]")
        if not 0 <= extent <= v1.MAX_EXTENT:
            message = f"the extent {extent} is outside 0 to {v1.MAX_EXTENT}"
            raise FormatError("S7", message, location=f"{where}[{index}]")
        bits *= max(1, extent)
        if bits > v1.MAX_SECTION_BITS:
            message = f"the shape {extents} of type {dtype} has 2^63 bits or more"
            raise FormatError("S7", message, location=where)
    return tuple(extents)


def check_number(count: int) -> None:
    """Refuse a table of too many sections (S1)."""
    if count > v1.MAX_SECTIONS:
        message = f"{count} sections are listed; {v1.MAX_SECTIONS} are allowed"
        raise FormatError("S1", message, location="manifest: sections")


def check_unique(sections: Sequence[Row]) -> None:
    """Refuse two sections of one name (S4), and files that stand in each other's way (S5)."""
    every = [name for name, _, _ in sections]
    if len(set(every)) < len(every):
        first = {name: -index for index, name in enumerate(reversed(every), 1 - len(every))}
        index, name = next((p, name) for p, name in enumerate(every) if first[name] != p)
        message = f"the name `{name}` stands twice"
        raise FormatError("S4", message, location=f"manifest: sections[{index}].name")
    files: dict[str, str] = {}
    named = [(p, name) for p, (name, _, _) in enumerate(sections) if name.startswith(names.FILE)]
    for index, name in named:
        other = files.setdefault(names.folded(name), name)
        if other != name:
            message = f"some systems take `{name}` and `{other}` for one file"
            raise FormatError("S5", message, location=f"manifest: sections[{index}].name")
    for index, name in named:
        parts = names.folded(name).split("/")
        for depth in range(1, len(parts)):
            other = files.get("/".join(parts[:depth]), "")
            if other:
                message = f"`{name}` lies in `{other}`, which is a file"
                raise FormatError("S5", message, location=f"manifest: sections[{index}].name")


def offsets_of(sizes: Iterable[int], start: int) -> tuple[list[int], int]:
    """Offsets of sections of these sizes after byte `start`, and the end of the last."""
    offsets = []
    end = start
    for size in sizes:
        offset = v1.align(end)
        offsets.append(offset)
        end = offset + size
    return offsets, end


def check_order(sections: Sequence[SectionEntry], start: int) -> int:
    """Refuse offsets other than the one valid set (rule S8); returns where the file must end.

    Args:
        sections: the whole table.
        start: the first byte after the manifest.
    """
    end = start
    for section in sections:
        offset = v1.align(end)
        if section.offset != offset:
            raise FormatError(
                "S8",
                f"the section starts at byte {section.offset} and must start at {offset}",
                location=section.location,
                note="sections follow each other at multiples of 64, without holes or overlap",
            )
        end = section.end
    return end


def check_spare(section: SectionEntry, data: memoryview) -> None:
    """Refuse codes whose unused last bits are not zero (rule S11)."""
    spare = section.spare_bits
    if spare and section.dtype in CODES and data[-1] >> (8 - spare):
        raise FormatError(
            "S11",
            f"the {spare} unused bits of the last byte are not all zero",
            location=f"section {section.name}, byte {section.end - 1}",
        )


def check_sections(found: Sequence[Row], wanted: Sequence[Row], rule: str) -> None:
    """The sections of a file are those that its document asks for, in their order.

    Raises:
        FormatError: `rule`.
    """
    for index, (have, want) in enumerate(zip(found, wanted, strict=False)):
        if have != want:
            message = (
                f"section {have[0]} is {have[1]} {list(have[2])} where the document asks for "
                f"{want[0]} as {want[1]} {list(want[2])}"
            )
            raise FormatError(rule, message, location=f"manifest: sections[{index}]")
    if len(found) != len(wanted):
        message = f"the document asks for {len(wanted)} sections; {len(found)} are listed"
        raise FormatError(rule, message, location="manifest: sections")
