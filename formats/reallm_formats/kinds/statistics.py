"""The document of kind `statistics`: second moments of a model's activations and gradients.

    matrices    one row for each matrix of the checkpoint that was measured
    provenance  what made it: text, bytes or integers by name
    settings    how it was made; open
    tokens      predicted tokens over which the means are taken

What is stored of each matrix follows from its row, so a file can hold nothing else. A symmetric
matrix is stored as its lower triangle, row by row, or as its diagonal alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from reallm_formats import names, v1
from reallm_formats.checks import closed_map, matrix_shape, provenance_map, typed
from reallm_formats.dtypes import section_bytes
from reallm_formats.errors import FormatError
from reallm_formats.sections import Row, check_sections

KEYS: Final = ("matrices", "provenance", "settings", "tokens")
ROW_KEYS: Final = ("input_form", "inputs", "name", "output_form", "sha256", "shape")
FULL: Final = "full"
DIAGONAL: Final = "diagonal"
NONE: Final = "none"


def symmetric_shape(form: str, extent: int) -> tuple[int]:
    """The shape of a stored symmetric matrix [extent, extent]."""
    return (extent * (extent + 1) // 2,) if form == FULL else (extent,)


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsEntry:
    """What is stored of one matrix W [p, q], with inputs x [q] and gradients g [p] at its outputs.

    Attributes:
        name: the matrix.
        shape: its extents [p, q].
        sha256: digest of the stored bytes of its tensor in the checkpoint; zeros while the file is
            only laid out.
        inputs: the matrix whose sections hold the moments of x that do not depend on g: itself,
            or one before it that has the same inputs.
        input_form: `full` or `diagonal`: how [q, q] is stored.
        output_form: `full`, `diagonal`, or `none` if nothing was measured of g.
    """

    name: str
    shape: tuple[int, int]
    sha256: bytes
    inputs: str
    input_form: str
    output_form: str

    def parts(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(role, dtype, shape) of its own sections, in the order of the file."""
        p, q = self.shape
        if self.inputs == self.name:
            yield "inputs", "f32", symmetric_shape(self.input_form, q)
            yield "mean_abs", "f32", (q,)
        yield "counts", "u64", (2,)
        if self.output_form != NONE:
            yield "weighted_inputs", "f32", symmetric_shape(self.input_form, q)
            yield "outputs", "f32", symmetric_shape(self.output_form, p)
            yield "weighted_outputs", "f32", symmetric_shape(self.output_form, p)
            yield "energy", "f64", ()

    def sections(self) -> Iterator[Row]:
        """(name, dtype, shape) of its own sections, in the order of the file."""
        for role, dtype, shape in self.parts():
            yield names.matrix_section(self.name, role), dtype, shape

    @property
    def nbytes(self) -> int:
        """Bytes of its sections."""
        return sum(section_bytes(dtype, shape) for _, dtype, shape in self.sections())

    def plain(self) -> dict[str, Any]:
        """The row as the manifest stores it."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "sha256": self.sha256,
            "inputs": self.inputs,
            "input_form": self.input_form,
            "output_form": self.output_form,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsDocument:
    """The document of an archive of kind `statistics`; see the module for its parts."""

    matrices: tuple[StatisticsEntry, ...]
    tokens: int
    settings: Mapping[str, Any]
    provenance: Mapping[str, str | bytes | int]

    def sections(self) -> list[Row]:
        """(name, dtype, shape) of all sections, in the order of the file."""
        return [section for row in self.matrices for section in row.sections()]

    def plain(self) -> dict[str, Any]:
        """The document as the manifest stores it."""
        return {
            "matrices": [row.plain() for row in self.matrices],
            "provenance": dict(self.provenance),
            "settings": dict(self.settings),
            "tokens": self.tokens,
        }


def parse_statistics(
    document: Mapping[str, Any], sections: Sequence[Row] = (), *, newer: bool = False
) -> StatisticsDocument:
    """The document of kind `statistics` from plain data, checked by itself and with its sections.

    Raises:
        FormatError: rules T1 to T5, D7, M2.
    """
    where = "manifest: document"
    items = closed_map(document, KEYS, "T1", where, newer=newer)
    settings = typed(items["settings"], dict, "T1", f"{where}.settings")
    rows = typed(items["matrices"], list, "T1", f"{where}.matrices")
    tokens = typed(items["tokens"], int, "T1", f"{where}.tokens")
    if not 1 <= tokens <= v1.MAX_EXTENT:
        message = f"means are taken over 1 to {v1.MAX_EXTENT} tokens, not {tokens}"
        raise FormatError("T1", message, location=f"{where}.tokens")
    provenance = provenance_map(items["provenance"], "T1", f"{where}.provenance")
    matrices = tuple(
        _parse_row(row, f"{where}.matrices[{index}]", newer=newer) for index, row in enumerate(rows)
    )
    _check_inputs(matrices, f"{where}.matrices")
    parsed = StatisticsDocument(
        matrices=matrices, tokens=tokens, settings=settings, provenance=provenance
    )
    check_sections(sections, parsed.sections(), "T5")
    return parsed


def _parse_row(value: object, where: str, *, newer: bool) -> StatisticsEntry:
    """A row of `matrices` by itself (rule T2)."""
    items = closed_map(value, ROW_KEYS, "T2", where, newer=newer)
    for key in ("name", "inputs"):
        names.check_name(typed(items[key], str, "T2", f"{where}.{key}"), f"{where}.{key}")
    shape = matrix_shape(items["shape"], "T2", f"{where}.shape")
    sha256 = typed(items["sha256"], bytes, "T2", f"{where}.sha256")
    if len(sha256) != v1.DIGEST_BYTES:
        message = f"a digest has {v1.DIGEST_BYTES} bytes, not {len(sha256)}"
        raise FormatError("T2", message, location=f"{where}.sha256")
    for key, forms in (("input_form", (FULL, DIAGONAL)), ("output_form", (FULL, DIAGONAL, NONE))):
        if typed(items[key], str, "T2", f"{where}.{key}") not in forms:
            message = f"the form `{items[key]}` is none of {', '.join(forms)}"
            raise FormatError("T2", message, location=f"{where}.{key}")
    return StatisticsEntry(
        name=items["name"],
        shape=shape,
        sha256=sha256,
        inputs=items["inputs"],
        input_form=items["input_form"],
        output_form=items["output_form"],
    )


def _check_inputs(matrices: Sequence[StatisticsEntry], where: str) -> None:
    """No name stands twice (T3), and shared inputs are those of a matrix before (T4)."""
    owners: dict[str, StatisticsEntry] = {}
    seen: set[str] = set()
    for index, row in enumerate(matrices):
        if row.name in seen:
            message = f"the matrix `{row.name}` stands twice"
            raise FormatError("T3", message, location=f"{where}[{index}].name")
        seen.add(row.name)
        if row.inputs == row.name:
            owners[row.name] = row
            continue
        owner = owners.get(row.inputs)
        if owner is None:
            message = f"no matrix before this one stores the inputs of `{row.inputs}`"
            raise FormatError("T4", message, location=f"{where}[{index}].inputs")
        if (owner.shape[1], owner.input_form) != (row.shape[1], row.input_form):
            message = f"`{row.name}` and `{owner.name}` share inputs and differ in width or form"
            raise FormatError("T4", message, location=f"{where}[{index}].inputs")
