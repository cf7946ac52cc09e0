"""The document of kind `model`: a whole checkpoint, its matrices coded, all else kept.

    recipe      the recipe that made it, less `model` and `output`: open, read by the compiler
    methods     the distinct matrix plans; open, read by the compiler
    matrices    one row for each coded matrix
    ties        tensors that are stored under another name: alias -> stored tensor
    provenance  what made it: text, bytes or integers by name

The container checks what keeps a file honest: every section belongs to something that the
document names, every row points at something that is there, and no tensor is stored twice.
What a plan means is not its business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from reallm_formats import names, v1
from reallm_formats.checks import closed_map, provenance_map, typed
from reallm_formats.dtypes import FLOATS, NUMBERS
from reallm_formats.errors import FormatError
from reallm_formats.sections import Row

KEYS: Final = ("matrices", "methods", "provenance", "recipe", "ties")
MATRIX_KEYS: Final[Mapping[str, type]] = {
    "dtype": str,
    "index": int,
    "method": int,
    "name": str,
    "relative_error": float,
    "shape": list,
    "tensor": str,
    "transposed": bool,
}
"""The keys of a row of `matrices` and their types; `index` may also be None."""

_FIELDS = itemgetter(*MATRIX_KEYS)
_TYPES = (
    tuple(MATRIX_KEYS.values()),
    tuple(type(None) if key == "index" else kind for key, kind in MATRIX_KEYS.items()),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixEntry:
    """A coded matrix.

    Attributes:
        name: the matrix's name; the checkpoint's tensor without `.weight`, and with the index
            in the stack where a tensor holds several.
        shape: extents [p, q] as coded.
        dtype: element type in the checkpoint.
        tensor: the checkpoint's tensor that it is (a part of).
        index: its index in a tensor that is a stack of matrices; None for a whole tensor.
        transposed: the checkpoint stores it as [q, p].
        method: its plan, as an index into `methods`.
        relative_error: ||W - W^|| / ||W|| (Frobenius), measured when it was encoded.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    tensor: str
    index: int | None = None
    transposed: bool = False
    method: int
    relative_error: float = 0.0

    def plain(self) -> dict[str, Any]:
        """The row as the manifest stores it."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "tensor": self.tensor,
            "index": self.index,
            "transposed": self.transposed,
            "method": self.method,
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDocument:
    """The document of an archive of kind `model`; see the module for its parts."""

    recipe: Mapping[str, Any]
    methods: tuple[Mapping[str, Any], ...]
    matrices: tuple[MatrixEntry, ...]
    ties: Mapping[str, str]
    provenance: Mapping[str, str | bytes | int]

    def plain(self) -> dict[str, Any]:
        """The document as the manifest stores it."""
        return {
            "recipe": dict(self.recipe),
            "methods": [dict(method) for method in self.methods],
            "matrices": [matrix.plain() for matrix in self.matrices],
            "ties": dict(self.ties),
            "provenance": dict(self.provenance),
        }


def parse_model(
    document: Mapping[str, Any], sections: Sequence[Row] = (), *, newer: bool = False
) -> ModelDocument:
    """The document of kind `model` from plain data, checked by itself and against the sections.

    Raises:
        FormatError: rules D1 to D8, M2.
    """
    where = "manifest: document"
    items = closed_map(document, KEYS, "D1", where, newer=newer)
    recipe = typed(items["recipe"], dict, "D1", f"{where}.recipe")
    methods = typed(items["methods"], list, "D1", f"{where}.methods")
    for index, method in enumerate(methods):
        typed(method, dict, "D1", f"{where}.methods[{index}]")
    rows = typed(items["matrices"], list, "D1", f"{where}.matrices")
    matrices: list[MatrixEntry] = []
    try:
        matrices.extend(_parse_matrix(row, len(methods), newer=newer) for row in rows)
    except FormatError as error:
        error.location = f"{where}.matrices[{len(matrices)}]{error.location}"
        raise
    _check_names(matrices, f"{where}.matrices")
    _check_sections(sections, matrices)
    ties = typed(items["ties"], dict, "D1", f"{where}.ties")
    _check_ties(ties, matrices, sections, f"{where}.ties")
    provenance = provenance_map(items["provenance"], "D1", f"{where}.provenance")
    return ModelDocument(
        recipe=recipe,
        methods=tuple(methods),
        matrices=tuple(matrices),
        ties=ties,
        provenance=provenance,
    )


def _parse_matrix(value: object, methods: int, *, newer: bool) -> MatrixEntry:
    """A row of `matrices` by itself (rule D2); locations in errors are relative to the row."""
    items = closed_map(value, MATRIX_KEYS, "D2", "", newer=newer)
    fields = _FIELDS(items)
    if tuple(map(type, fields)) not in _TYPES:
        wrong = [key for key, kind in MATRIX_KEYS.items() if type(items[key]) is not kind]
        key = wrong[0] if wrong[0] != "index" or items["index"] is not None else wrong[1]
        typed(items[key], MATRIX_KEYS[key], "D2", f".{key}")
    dtype, index, method, name, error, shape, tensor, transposed = fields
    names.check_name(name, ".name")
    names.check_name(tensor, ".tensor")
    if len(shape) != 2 or type(shape[0]) is not int or type(shape[1]) is not int:
        for extent in shape:
            typed(extent, int, "D2", ".shape")
    if len(shape) != 2 or not 1 <= min(shape) <= max(shape) <= v1.MAX_EXTENT:
        message = f"a matrix has two extents of at least 1, not {shape}"
        raise FormatError("D2", message, location=".shape")
    if dtype not in FLOATS:
        raise FormatError("D2", f"weights are floats, not `{dtype}`", location=".dtype")
    if index is not None and not 0 <= index <= v1.MAX_EXTENT:
        raise FormatError("D2", f"{index} is not an index in a stack", location=".index")
    if not 0 <= method < methods:
        message = f"there is no method {method}; {methods} are listed"
        raise FormatError("D2", message, location=".method")
    if not 0 <= error < math.inf:
        message = f"{error} is not an error: it is a number of at least 0"
        raise FormatError("D2", message, location=".relative_error")
    return MatrixEntry(
        name=name,
        shape=(shape[0], shape[1]),
        dtype=dtype,
        tensor=tensor,
        index=index,
        transposed=transposed,
        method=method,
        relative_error=error,
    )


def _check_names(matrices: Sequence[MatrixEntry], where: str) -> None:
    """Each name once, each index of a tensor once, no tensor both whole and in parts (D3)."""
    seen: set[str] = set()
    whole: set[str] = set()
    parts: dict[str, set[int]] = {}
    for index, matrix in enumerate(matrices):
        if matrix.name in seen:
            message = f"the matrix `{matrix.name}` stands twice"
            raise FormatError("D3", message, location=f"{where}[{index}].name")
        seen.add(matrix.name)
        taken = parts.get(matrix.tensor)
        full = matrix.tensor in whole
        if full or (taken and (matrix.index is None or matrix.index in taken)):
            message = f"the tensor `{matrix.tensor}` is filled twice"
            raise FormatError("D3", message, location=f"{where}[{index}].tensor")
        if matrix.index is None:
            whole.add(matrix.tensor)
        else:
            parts.setdefault(matrix.tensor, set()).add(matrix.index)
    _check_stacks(matrices, parts, where)


def _check_stacks(
    matrices: Sequence[MatrixEntry], parts: Mapping[str, set[int]], where: str
) -> None:
    """The matrices of a stack are alike and fill it (D8)."""
    first: dict[str, MatrixEntry] = {}
    for index, matrix in enumerate(matrices):
        if matrix.index is None:
            continue
        alike = first.setdefault(matrix.tensor, matrix)
        for key in ("shape", "dtype", "transposed"):
            mine, other = getattr(matrix, key), getattr(alike, key)
            if mine != other:
                message = (
                    f"`{matrix.name}` and `{alike.name}` are parts of `{matrix.tensor}` and differ "
                    f"in `{key}`: {mine} and {other}"
                )
                raise FormatError("D8", message, location=f"{where}[{index}].{key}")
        count = len(parts[matrix.tensor])
        if matrix.index >= count:
            message = f"`{matrix.tensor}` has {count} parts, and this is number {matrix.index}"
            raise FormatError("D8", message, location=f"{where}[{index}].index")


def _check_sections(sections: Sequence[Row], matrices: Sequence[MatrixEntry]) -> None:
    """Each section belongs to something (D4), has a fitting type (D5), and is stored once (D3)."""
    owners = {f"{names.MATRIX}{matrix.name}" for matrix in matrices}
    coded = {matrix.tensor for matrix in matrices}
    for index, (text, dtype, shape) in enumerate(sections):
        if text.rpartition("/")[0] in owners:
            continue
        where = f"manifest: sections[{index}]"
        name = names.parse_name(text, where)
        if name.space == names.MATRIX:
            message = f"`{text}` belongs to no matrix of the document"
            raise FormatError("D4", message, location=f"{where}.name")
        if name.space == names.TENSOR and name.owner in coded:
            message = f"the tensor `{name.owner}` is stored whole and as a coded matrix"
            raise FormatError("D3", message, location=f"{where}.name")
        if name.space == names.TENSOR and dtype not in NUMBERS:
            message = f"a kept tensor holds numbers, not `{dtype}`"
            raise FormatError("D5", message, location=f"{where}.dtype")
        if name.space == names.FILE and (dtype != "u8" or len(shape) != 1):
            message = "an embedded file is a list of bytes: type u8, one extent"
            raise FormatError("D5", message, location=f"{where}.dtype")


def _check_ties(
    ties: Mapping[str, Any],
    matrices: Sequence[MatrixEntry],
    sections: Sequence[Row],
    where: str,
) -> None:
    """Each tie leads from a tensor that is not stored to one that is (D6)."""
    stored = {matrix.tensor for matrix in matrices}
    stored.update(
        name[len(names.TENSOR) :] for name, _, _ in sections if name.startswith(names.TENSOR)
    )
    for alias, target in ties.items():
        names.check_name(alias, f"{where}.{alias!r}")
        if typed(target, str, "D6", f"{where}.{alias}") not in stored:
            message = f"the tie leads to `{target}`, which is not stored"
            raise FormatError("D6", message, location=f"{where}.{alias}")
        if alias in stored:
            message = f"`{alias}` is stored, and tied to another tensor"
            raise FormatError("D6", message, location=f"{where}.{alias}")
