"""Where everything will lie, known from the plan alone.

All that depends on data has a fixed width in the manifest (32 bytes a digest, 8 bytes a float), so
the manifest's length follows from names, types and shapes. One circle remains: offsets are
written in their shortest form, so the manifest's length depends on the offsets and they on its
length. `layout` takes the least length that agrees with itself; it is reached from below, since
a longer manifest never makes an offset shorter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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


class Block(NamedTuple):
    """Sections that follow each other and belong to one owner.

    A large model has a million sections, and most of its matrices store the same ones: blocks with
    one and the same `rows` object are measured once.

    Attributes:
        owner: `matrix:NAME` or `share:GROUP`; empty where each row has its section's whole name.
        rows: role, type and shape of each section.
    """

    owner: str
    rows: Sequence[tuple[str, str, Sequence[int]]]

    def sections(self) -> Iterator[Row]:
        """The sections by their whole names."""
        for role, dtype, shape in self.rows:
            yield f"{self.owner}/{role}" if self.owner else role, dtype, tuple(shape)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The plan of a file; the byte terms add up to `file_bytes`.

    Attributes:
        kind, features, document: as in `Manifest`.
        blocks: the sections, in the file's order.
        manifest_bytes: length of the encoded manifest.
        section_bytes: bytes of all sections.
        padding_bytes: zeros between sections.
        file_bytes: length of the file.
    """

    kind: str
    features: tuple[str, ...]
    document: dict[str, Any]
    blocks: tuple[Block, ...]
    manifest_bytes: int
    section_bytes: int
    padding_bytes: int
    file_bytes: int

    def __eq__(self, other: object) -> bool:
        """Whether both lay out the same file, however its sections are grouped into blocks."""
        if not isinstance(other, Layout):
            return NotImplemented
        mine, others = (
            (it.kind, it.features, it.document, it.rows, it.manifest_bytes) for it in (self, other)
        )
        return mine == others

    @cached_property
    def rows(self) -> list[Row]:
        """Name, type and shape of each section, in the file's order."""
        return [row for block in self.blocks for row in block.sections()]

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
    sections: Iterable[tuple[str, str, Sequence[int]]] = (),
    blocks: Iterable[Block] = (),
    features: Iterable[str] = (),
) -> Layout:
    """Lay out a file.

    Args:
        kind: what the archive is: `model` or `adapter`.
        document: its document; what depends on data holds a value of the final width, such as
            0.0 for an error. It is copied.
        sections: (name, dtype, shape) in the order of the file.
        blocks: the sections that follow after `sections`, by owner.
        features: features that a reader must know.

    Raises:
        FormatError: what was given breaks a rule, so no reader would accept the file.
    """
    plain, values = canonical.counted(document, depth=1)
    required = check_features(sorted(features))
    typed(kind, str, "M3", "manifest: kind")
    table = _measure([Block("", tuple(sections)), *blocks])
    check_number(table.count)
    typed(plain, dict, "M1", "manifest: document")
    check_document(kind, plain, table.heads, newer=False)
    frame, frame_values = canonical.counted(Manifest(kind=kind, features=required).plain())
    # The empty document and the empty table take one byte each.
    rest = len(canonical.pack(frame)) - 2 + len(canonical.pack(plain))
    rest += _list_head(table.count) + table.nbytes
    length, end = _settle(rest, table)
    if length > v1.MAX_MANIFEST_BYTES or end > v1.MAX_FILE_BYTES:
        message = f"a manifest of {length} bytes or a file of {end} bytes is too long"
        raise FormatError("H5", message, location="layout")
    canonical.check_count(frame_values - 1 + values + table.values, length)
    stored = sum(rows.stored for rows in table.measured)
    return Layout(
        kind=kind,
        features=required,
        document=plain,
        blocks=tuple(table.blocks),
        manifest_bytes=length,
        section_bytes=stored,
        padding_bytes=end - v1.HEADER_BYTES - length - stored,
        file_bytes=end,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """What the rows of a block take, whatever their owner.

    Attributes:
        names: bytes of each name, without the owner's.
        longest: the most of them.
        nbytes: bytes of all rows in the manifest, without names and offsets.
        values: values of all rows in the manifest.
        starts: where each section starts, counted from the first one.
        last: bytes of the last section.
        stored: bytes of all sections.
    """

    names: Sequence[int]
    longest: int
    nbytes: int
    values: int
    starts: Sequence[int]
    last: int
    stored: int

    def named_bytes(self, owner: int) -> int:
        """Bytes of all rows in the manifest, without offsets; `owner` is the bytes of its name."""
        start = owner + 1 if owner else 0
        return self.nbytes + sum(_text_bytes(start + name) for name in self.names)


@dataclass(kw_only=True, slots=True)
class _Table:
    """A section table before the sections have offsets.

    Attributes:
        blocks: its blocks, without empty ones.
        measured: what the rows of each block take.
        heads: the rows without an owner, and of each other block the first row: as much as
            the document's rules look at.
        count: number of sections.
        nbytes: bytes of all rows in the manifest, without the offsets.
        values: values of all rows in the manifest.
    """

    blocks: list[Block] = field(default_factory=list)
    measured: list[_Rows] = field(default_factory=list)
    heads: list[Row] = field(default_factory=list)
    count: int = 0
    nbytes: int = 0
    values: int = 0


def _measure(blocks: Iterable[Block]) -> _Table:
    """The table of `blocks`, each of them checked; rows that were found right once are not again.

    Raises:
        FormatError: a rule of a row, or two sections of one name.
    """
    known: dict[tuple[int, bool], _Rows] = {}
    sizes: dict[tuple[int, int], int] = {}
    owners: set[str] = set()
    table = _Table()
    for block in blocks:
        owner, rows = block
        if not rows:
            continue
        length = len(owner.encode())
        found = known.get((id(rows), bool(owner)))
        if found is None:
            sections = list(block.sections())
            found = known[id(rows), bool(owner)] = _measured(sections, length, table.count)
            check_unique(sections)
            if owner and any("/" in role for role, _, _ in rows):
                where = f"manifest: sections[{table.count}].name"
                raise FormatError("S3", f"a part of `{owner}` has no `/`", location=where)
        if owner:
            owners.add(owner)
            table.heads.append(_head(block, length, found, table.count))
        else:
            table.heads += block.sections()
        size = sizes.get((id(rows), length))
        if size is None:
            size = sizes[id(rows), length] = found.named_bytes(length)
        table.blocks.append(block)
        table.measured.append(found)
        table.count += len(rows)
        table.nbytes += size
        table.values += found.values
    # No two sections of different owners have one name, and those of a block have been compared.
    plain = [row for block in table.blocks if not block.owner for row in block.sections()]
    owned = sum(1 for block in table.blocks if block.owner)
    if owned == len(owners) and not any(name.rpartition("/")[0] in owners for name, _, _ in plain):
        check_unique(plain)
    else:
        check_unique([row for block in table.blocks for row in block.sections()])
    return table


def _measured(sections: Sequence[Row], owner: int, first: int) -> _Rows:
    """What rows take; each is checked.

    Args:
        sections: the rows, with whole names.
        owner: bytes of the owner's name.
        first: index of the first in the table.
    """
    measured: dict[tuple[str, tuple[int, ...]], tuple[int, int, int]] = {}
    start = owner + 1 if owner else 0
    lengths, sizes = [], []
    total = values = 0
    for index, (name, dtype, shape) in enumerate(sections, first):
        where = f"manifest: sections[{index}]"
        row_size = measured.get((dtype, shape))
        if row_size is None:
            check_row(name, dtype, list(shape), where)
            row_size = measured[dtype, shape] = _row_size(dtype, shape)
        else:
            names.parse_name(name, f"{where}.name")
        lengths.append(len(name.encode()) - start)
        sizes.append(row_size[0])
        total += row_size[1]
        values += row_size[2]
    *starts, _ = accumulate(map(v1.align, sizes), initial=0)
    return _Rows(
        names=lengths,
        longest=max(lengths),
        nbytes=total,
        values=values,
        starts=starts,
        last=sizes[-1],
        stored=sum(sizes),
    )


def _row_size(dtype: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Bytes of a section; bytes of its row without name and offset, and values of the row."""
    digest = bytes(v1.DIGEST_BYTES)
    row = SectionEntry(name="", dtype=dtype, shape=shape, offset=0, sha256=digest)
    # The name, empty here, and the offset take one byte each.
    return row.nbytes, len(canonical.pack(row.plain())) - 2, ROW_VALUES + len(shape)


def _head(block: Block, owner: int, found: _Rows, index: int) -> Row:
    """The first row of a block, whose rows have been checked under another owner."""
    role, dtype, shape = block.rows[0]
    name = f"{block.owner}/{role}"
    space = names.MATRIX if name.startswith(names.MATRIX) else names.SHARE
    try:
        if not block.owner.startswith(space) or block.owner == space:
            raise FormatError("S3", f"`{block.owner}` is neither a matrix nor a group")
        names.check_name(name, "")
        if owner + 1 + found.longest > v1.MAX_NAME_BYTES:
            longest = max((role for role, _, _ in block.rows), key=len)
            names.check_name(f"{block.owner}/{longest}", "")
    except FormatError as error:
        error.location = f"manifest: sections[{index}].name"
        raise
    return name, dtype, shape if type(shape) is tuple else tuple(shape)


def _settle(rest: int, table: _Table) -> tuple[int, int]:
    """Length of the manifest and end of the file that agree with each other.

    Args:
        rest: bytes of the manifest without the offsets.
        table: the sections.
    """
    # Starts of the blocks, counted from the first section, and the sections before each.
    rows = table.measured
    starts = list(accumulate((v1.align(it.starts[-1] + it.last) for it in rows), initial=0))
    before = list(accumulate((len(it.starts) for it in rows), initial=0))

    def sections_below(offset: int) -> int:
        block = bisect_left(starts, offset, hi=len(rows)) - 1
        if block < 0:
            return 0
        return before[block] + bisect_left(rows[block].starts, offset - starts[block])

    length = 0
    while True:
        first = v1.align(v1.HEADER_BYTES + length)
        settled = rest + 9 * table.count
        for bits, saved in ((8, 1), (16, 2), (32, 4)):  # the shortest form that holds an offset
            settled -= saved * sections_below((1 << bits) - first)
        if settled == length:
            end = v1.HEADER_BYTES + length
            if rows:
                end = first + starts[len(rows) - 1] + rows[-1].starts[-1] + rows[-1].last
            return length, end
        length = settled


def _text_bytes(length: int) -> int:
    """Bytes of a text of `length` bytes, its head included."""
    return length + (1 if length < 1 << 5 else 2 if length < 1 << 8 else 3)


def _list_head(count: int) -> int:
    """Bytes of the head of a list."""
    return 1 if count < 1 << 4 else 3 if count < 1 << 16 else 5
