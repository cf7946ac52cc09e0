"""The header of a safetensors file, read by ourselves.

The file is an 8-byte little-endian length, that many bytes of JSON, then the data. The JSON maps
each tensor's name to its type, shape and byte range. All of it is untrusted input and is
checked before anything is allocated for it: the length against the file, types and shapes
against the byte ranges, and the ranges against each other, so that they cover the data without
a hole and without an overlap.

The weights themselves are never read here. A tensor's offset in the file is part of its
`TensorSpec`, so that one tensor, one expert or a few rows can be had by one plain read.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from reallm_compiler.checkpoint.paths import open_regular, unreadable
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import TensorSpec
from reallm_formats import v1
from reallm_formats.dtypes import BITS

HEADER_LIMIT = 100_000_000
"""Longest header in bytes; the limit of the safetensors library."""
AXES_LIMIT = v1.MAX_RANK
EXTENT_LIMIT = v1.MAX_EXTENT
SIZE_LIMIT = v1.MAX_SECTION_BITS // 64
"""Most elements of a tensor: what an archive can hold of the widest type."""
NAME_LIMIT = v1.MAX_NAME_BYTES - 64
"""Longest name in bytes of UTF-8; the rest of a section's name is for prefix, expert and role."""

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool",
        "U8": "u8",
        "I8": "i8",
        "U16": "u16",
        "I16": "i16",
        "U32": "u32",
        "I32": "i32",
        "U64": "u64",
        "I64": "i64",
        "F8_E4M3": "f8_e4m3",
        "F8_E5M2": "f8_e5m2",
        "F16": "f16",
        "BF16": "bf16",
        "F32": "f32",
        "F64": "f64",
    }
)
"""Types of safetensors that are read, as the container names them."""
FLOATS = frozenset({"f8_e4m3", "f8_e5m2", "f16", "bf16", "f32", "f64"})
"""The types, in the container's names, that can hold weights."""

_AGAIN = "download it again"


def read_header(path: Path, label: str) -> tuple[TensorSpec, ...]:
    """All tensors of a safetensors file, in the order of their data.

    Args:
        path: the file.
        label: its name in messages and in `TensorSpec.shard`.

    Raises:
        SourceError: the file cannot be read, is cut short, or breaks a rule of the format.
    """
    with open_regular(path, label) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            document, start = _read_document(file, size, label)
        except OSError as error:
            raise unreadable(error, label) from error
    return header_specs(document, label, start=start, size=size)


def header_specs(
    document: dict[str, Any], label: str, *, start: int = 0, size: int | None = None
) -> tuple[TensorSpec, ...]:
    """All tensors of a header, in the order of their data.

    Args:
        document: the header.
        label: the file's name in messages and in `TensorSpec.shard`.
        start: where the data begins in the file.
        size: length of the file; None where it is not known.

    Raises:
        SourceError: the header breaks a rule of the format.
    """
    document.pop("__metadata__", None)
    specs = [_entry(name, value, start, label) for name, value in document.items()]
    specs.sort(key=lambda spec: (spec.begin, spec.stored_bytes))
    _check_cover(specs, start, size, label)
    return tuple(specs)


def _read_document(file: BinaryIO, size: int, label: str) -> tuple[dict[str, Any], int]:
    """The header as a mapping, and the offset where the data begins."""
    prefix = file.read(8)
    if prefix == b"version ":
        raise SourceError(
            f"shard {label} is a Git LFS pointer, not the weights",
            location=label,
            hint="run `git lfs pull` in the folder",
        )
    if len(prefix) < 8:
        raise SourceError(
            f"shard {label} holds {size} bytes, too few for a safetensors file",
            location=label,
            hint=_AGAIN,
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > HEADER_LIMIT:
        raise _broken(label, f"its header claims {length:,} bytes, above {HEADER_LIMIT:,}")
    if 8 + length > size:
        raise _early(label, 8 + length - size)
    text = file.read(length)
    if len(text) < length:
        raise _early(label, length - len(text))
    if not text.startswith(b"{"):
        raise _broken(label, "its header does not start with a brace")
    try:
        document = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise _broken(label, "its header is nested too deeply") from None
    except ValueError as error:
        raise _broken(label, f"its header is not valid JSON: {error}") from error
    return document, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice")
            seen.add(key)
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _entry(name: str, value: object, start: int, label: str) -> TensorSpec:
    """One tensor of the header, checked by itself."""
    check_name(name, label)
    location = f"{label}: {name}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(label, f"tensor {name!r} is not described by dtype, shape, data_offsets")
    stated, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    dtype = DTYPES.get(stated) if isinstance(stated, str) else None
    if dtype is None:
        raise SourceError(
            f"tensor {name!r} has the element type {stated!r}, which cannot be read",
            location=location,
            note=f"readable types: {', '.join(DTYPES)}",
            hint="start from the checkpoint in bf16, fp16, fp32 or fp8",
        )
    if isinstance(shape, list) and len(shape) > AXES_LIMIT:
        raise SourceError(
            f"tensor {name!r} has {len(shape)} axes, above {AXES_LIMIT}",
            location=location,
            note="an archive could not hold it",
            hint="write the checkpoint again without it, or with fewer axes",
        )
    extents = check_shape(shape)
    if extents is None:
        raise _broken(label, f"tensor {name!r} has the invalid shape {_short(shape)}", location)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        raise _broken(label, f"tensor {name!r} has no usable data_offsets: {_short(offsets)}")
    begin, end = offsets
    needed = math.prod(extents) * BITS[dtype] // 8
    if end - begin != needed:
        raise _broken(
            label,
            f"tensor {name!r} needs {needed:,} bytes for {stated} {list(extents)}, "
            f"but its range {begin}..{end} has {end - begin:,}",
        )
    return TensorSpec(name=name, dtype=dtype, shape=extents, shard=label, begin=start + begin)


def check_name(name: str, label: str) -> None:
    """Refuses a tensor name that could not be stored or shown: empty, overlong, unprintable.

    The limits are those of an archive's names, so that a source is refused where it is read and
    not later as a part of the archive.
    """
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name.isprintable():
        reason = "it cannot be printed"
    elif not name.removesuffix(".weight"):
        reason = "it is empty"
    elif size > NAME_LIMIT:
        reason = f"it has {size:,} bytes, above {NAME_LIMIT}"
    else:
        return
    raise SourceError(
        f"{_short(name)} is not a valid tensor name: {reason}",
        location=f"{label}: {_short(name)}",
        note="an archive could not hold a tensor of this name",
        hint="rename it in the checkpoint",
    )


def check_shape(shape: object) -> tuple[int, ...] | None:
    """A shape as a tuple, or None where it is no list of extents that an archive could hold."""
    if not isinstance(shape, list | tuple) or len(shape) > AXES_LIMIT:
        return None
    size = 1
    for extent in shape:
        if not (type(extent) is int and 0 <= extent <= EXTENT_LIMIT):
            return None
        size *= extent or 1  # as the container counts: an empty tensor hides no absurd extents
    return tuple(shape) if size <= SIZE_LIMIT else None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_cover(specs: list[TensorSpec], start: int, size: int | None, label: str) -> None:
    """The tensors, in the order of their data, must cover it exactly, as far as it is known."""
    position = start
    last = ""
    for spec in specs:
        if spec.begin != position:
            what = "overlaps" if spec.begin < position else "leaves a hole after"
            before = f"tensor {last!r}" if last else "the header"
            raise _broken(label, f"tensor {spec.name!r} {what} {before}")
        position += spec.stored_bytes
        last = spec.name
    if size is None:
        return
    if position > size:
        raise _early(label, position - size)
    if position < size:
        raise _broken(label, f"{size - position:,} bytes follow the last tensor")


def _early(label: str, count: int) -> SourceError:
    return SourceError(
        f"shard {label} ends {count:,} bytes early",
        location=label,
        note="its header promises more data than the file holds: a transfer was cut short",
        hint=_AGAIN,
    )


def _broken(label: str, message: str, location: str | None = None) -> SourceError:
    return SourceError(
        f"shard {label} is not a valid safetensors file: {message}",
        location=location or label,
        hint=f"{_AGAIN}; if the error remains, the file was written incorrectly",
    )


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
