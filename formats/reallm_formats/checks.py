"""Small checks of decoded data that manifest and documents share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from reallm_formats import v1
from reallm_formats.errors import FormatError

_TYPE_NAMES = {
    dict: "a map",
    list: "a list",
    str: "text",
    bytes: "bytes",
    int: "an integer",
    float: "a float",
    bool: "true or false",
    type(None): "nothing",
}


def describe(value: object) -> str:
    """The type of a decoded value in plain words."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def typed(value: object, kind: type, rule: str, where: str) -> Any:  # noqa: ANN401
    """`value`, which must be exactly of type `kind`: a bool is no integer, an integer no float."""
    if type(value) is not kind:
        message = f"this must be {_TYPE_NAMES[kind]}, not {describe(value)}"
        raise FormatError(rule, message, location=where)
    return value


def closed_map(
    value: object, keys: Collection[str], rule: str, where: str, *, newer: bool
) -> dict[str, Any]:
    """`value`, which must be a map with exactly these keys.

    Args:
        value: a decoded value.
        keys: the keys that version 1.0 knows; all are needed.
        rule: the rule that wants them.
        where: the location of `value`.
        newer: the file's minor version is newer than ours, so keys that we do not know pass.

    Raises:
        FormatError: `rule` for a missing key or another type, M2 for an unknown key.
    """
    items: dict[str, Any] = typed(value, dict, rule, where)
    if len(items) == len(keys) and all(map(items.__contains__, keys)):
        return items
    missing = [key for key in keys if key not in items]
    if missing:
        raise FormatError(rule, f"the key `{missing[0]}` is missing", location=where)
    unknown = [key for key in items if key not in keys]
    if unknown and not newer:
        raise FormatError(
            "M2",
            f"the key `{unknown[0]}` is not known",
            location=where,
            note="only a newer minor version may add keys",
        )
    return items


def provenance_map(value: object, rule: str, where: str) -> dict[str, str | bytes | int]:
    """`value`, which must be a map from names to text, bytes or integers.

    Raises:
        FormatError: `rule` for what is no map, D7 for an entry of another type.
    """
    items: dict[str, str | bytes | int] = typed(value, dict, rule, where)
    for key, entry in items.items():
        if type(entry) not in (str, bytes, int):
            message = f"this must be text, bytes or an integer, not {describe(entry)}"
            raise FormatError("D7", message, location=f"{where}.{key}")
    return items


def matrix_shape(value: object, rule: str, where: str) -> tuple[int, int]:
    """`value`, which must be the list of the two extents of a matrix.

    Raises:
        FormatError: `rule`.
    """
    shape = typed(value, list, rule, where)
    for extent in shape:
        typed(extent, int, rule, where)
    if len(shape) != 2 or not all(1 <= extent <= v1.MAX_EXTENT for extent in shape):
        message = f"a matrix has two extents of at least 1, not {shape}"
        raise FormatError(rule, message, location=where)
    return shape[0], shape[1]
