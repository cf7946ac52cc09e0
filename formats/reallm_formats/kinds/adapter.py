"""The document of kind `adapter`: what was tuned, to be used in place of the parts of one base.

    base        digest of the model archive that it belongs to
    matrices    one row for each matrix whose factors or gains it replaces
    replaced    other sections of the base that it replaces: scales, codebooks, norms, biases
    settings    how it was made; open
    provenance  what made it: text, bytes or integers by name

An adapter holds nothing but these parts, so its sections follow from its rows: which, of what
type and shape, and in what order. Codes are never replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from reallm_formats import names, v1
from reallm_formats.checks import closed_map, matrix_shape, provenance_map, typed
from reallm_formats.dtypes import NUMBERS, section_bytes
from reallm_formats.errors import FormatError
from reallm_formats.sections import Row, check_sections

KEYS: Final = ("base", "matrices", "provenance", "replaced", "settings")
ROW_KEYS: Final = ("column_gain", "dtype", "gain", "name", "rank", "rounding_error", "shape")
REPLACED_KEYS: Final = ("dtype", "name", "shape")
DTYPES: Final = ("bf16", "f16", "f32", "i8")
"""Types of factors; those of type i8 have a scale of type f16 for each column and row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterEntry:
    """The tuned parts of one matrix.

    Attributes:
        name: the matrix's name in the base.
        shape: its extents [p, q].
        rank: columns r of L1 and rows of L2; 0 if there are no factors.
        dtype: type of the factors as stored.
        gain: whether there is a gain for each row.
        column_gain: whether there is a gain for each column of the coded part.
        rounding_error: ||R - R'|| / ||R|| (Frobenius) of the factors' product R as it was tuned
            and R' as it is stored.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    dtype: str
    gain: bool
    column_gain: bool = False
    rounding_error: float = 0.0

    def sections(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of its sections, in the order of the file."""
        p, q = self.shape
        if self.rank:
            yield names.matrix_section(self.name, "l1"), self.dtype, (p, self.rank)
            yield names.matrix_section(self.name, "l2"), self.dtype, (self.rank, q)
            if self.dtype == "i8":
                yield names.matrix_section(self.name, "l1_scales"), "f16", (self.rank,)
                yield names.matrix_section(self.name, "l2_scales"), "f16", (self.rank,)
        if self.gain:
            yield names.matrix_section(self.name, "gain"), "f16", (p,)
        if self.column_gain:
            yield names.matrix_section(self.name, "column_gain"), "f16", (q,)

    @property
    def nbytes(self) -> int:
        """Bytes of its sections."""
        return sum(section_bytes(dtype, shape) for _, dtype, shape in self.sections())

    def plain(self) -> dict[str, Any]:
        """The row as the manifest stores it."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "rank": self.rank,
            "dtype": self.dtype,
            "gain": self.gain,
            "column_gain": self.column_gain,
            "rounding_error": self.rounding_error,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterDocument:
    """The document of an archive of kind `adapter`; see the module for its parts."""

    base: bytes
    matrices: tuple[AdapterEntry, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, str | bytes | int]
    replaced: tuple[Row, ...] = ()

    def sections(self) -> list[Row]:
        """(name, dtype, shape) of all sections, in the order of the file."""
        own = [section for row in self.matrices for section in row.sections()]
        return [*own, *self.replaced]

    def plain(self) -> dict[str, Any]:
        """The document as the manifest stores it."""
        return {
            "base": self.base,
            "matrices": [row.plain() for row in self.matrices],
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
            "replaced": [
                {"name": name, "dtype": dtype, "shape": list(shape)}
                for name, dtype, shape in self.replaced
            ],
        }


def parse_adapter(
    document: Mapping[str, Any], sections: Sequence[Row] = (), *, newer: bool = False
) -> AdapterDocument:
    """The document of kind `adapter` from plain data, checked by itself and against the sections.

    Raises:
        FormatError: rules A1 to A6, D7, M2.
    """
    where = "manifest: document"
    items = closed_map(document, KEYS, "A1", where, newer=newer)
    settings = typed(items["settings"], dict, "A1", f"{where}.settings")
    rows = typed(items["matrices"], list, "A1", f"{where}.matrices")
    base = typed(items["base"], bytes, "A2", f"{where}.base")
    if len(base) != v1.DIGEST_BYTES:
        message = f"a digest has {v1.DIGEST_BYTES} bytes, not {len(base)}"
        raise FormatError("A2", message, location=f"{where}.base")
    matrices = tuple(
        _parse_row(row, f"{where}.matrices[{index}]", newer=newer) for index, row in enumerate(rows)
    )
    seen: set[str] = set()
    for index, matrix in enumerate(matrices):
        if matrix.name in seen:
            message = f"the matrix `{matrix.name}` stands twice"
            raise FormatError("A4", message, location=f"{where}.matrices[{index}].name")
        seen.add(matrix.name)
    provenance = provenance_map(items["provenance"], "A1", f"{where}.provenance")
    others = typed(items["replaced"], list, "A1", f"{where}.replaced")
    replaced = tuple(
        _parse_replaced(row, f"{where}.replaced[{index}]", newer=newer)
        for index, row in enumerate(others)
    )
    parsed = AdapterDocument(
        base=base,
        matrices=matrices,
        settings=settings,
        provenance=provenance,
        replaced=replaced,
    )
    check_sections(sections, parsed.sections(), "A5")
    return parsed


def _parse_row(value: object, where: str, *, newer: bool) -> AdapterEntry:
    """A row of `matrices` by itself (rule A3)."""
    items = closed_map(value, ROW_KEYS, "A3", where, newer=newer)
    name = typed(items["name"], str, "A3", f"{where}.name")
    names.check_name(name, f"{where}.name")
    shape = matrix_shape(items["shape"], "A3", f"{where}.shape")
    rank = typed(items["rank"], int, "A3", f"{where}.rank")
    if not 0 <= rank <= min(shape):
        message = f"the rank {rank} is not in 0 to {min(shape)}"
        raise FormatError("A3", message, location=f"{where}.rank")
    dtype = typed(items["dtype"], str, "A3", f"{where}.dtype")
    if dtype not in DTYPES:
        message = f"factors have one of the types {', '.join(DTYPES)}, not `{dtype}`"
        raise FormatError("A3", message, location=f"{where}.dtype")
    gain = typed(items["gain"], bool, "A3", f"{where}.gain")
    column_gain = typed(items["column_gain"], bool, "A3", f"{where}.column_gain")
    error = typed(items["rounding_error"], float, "A3", f"{where}.rounding_error")
    if not (math.isfinite(error) and error >= 0):
        message = f"{error} is not an error: it is a number of at least 0"
        raise FormatError("A3", message, location=f"{where}.rounding_error")
    return AdapterEntry(
        name=name,
        shape=shape,
        rank=rank,
        dtype=dtype,
        gain=gain,
        column_gain=column_gain,
        rounding_error=error,
    )


def _parse_replaced(value: object, where: str, *, newer: bool) -> Row:
    """A row of `replaced` by itself (rule A6)."""
    items = closed_map(value, REPLACED_KEYS, "A6", where, newer=newer)
    name = typed(items["name"], str, "A6", f"{where}.name")
    if names.parse_name(name, f"{where}.name").space == names.FILE:
        raise FormatError("A6", "a file is not replaced", location=f"{where}.name")
    dtype = typed(items["dtype"], str, "A6", f"{where}.dtype")
    if dtype not in NUMBERS:
        message = f"a replaced section has a type of numbers, not `{dtype}`"
        raise FormatError("A6", message, location=f"{where}.dtype")
    shape = typed(items["shape"], list, "A6", f"{where}.shape")
    for extent in shape:
        typed(extent, int, "A6", f"{where}.shape")
    return name, dtype, tuple(shape)
