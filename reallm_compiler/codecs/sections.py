"""Section tensors and their bytes.

A section of type `bN` is a uint8 tensor of one dimension, the packed stream; a section of any
other type is a tensor of that type and of the section's shape. Bytes are little-endian.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reallm_compiler.errors import CodecError, FormatError
from reallm_compiler.storage.base import SectionSpec
from reallm_formats import Archive
from reallm_formats.dtypes import CODES

TORCH_DTYPES = {
    "bool": torch.bool,
    "u8": torch.uint8,
    "i8": torch.int8,
    "u16": torch.uint16,
    "i16": torch.int16,
    "u32": torch.uint32,
    "i32": torch.int32,
    "u64": torch.uint64,
    "i64": torch.int64,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}
"""Types of the container as torch types."""

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""Torch types as types of the container."""

Sections = dict[str, Tensor]
"""Section tensors of one matrix or one share group, by role."""


def stored_dtype(spec: SectionSpec) -> torch.dtype:
    """The torch type of a section's tensor."""
    return torch.uint8 if spec.dtype in CODES else TORCH_DTYPES[spec.dtype]


def stored_shape(spec: SectionSpec) -> tuple[int, ...]:
    """The shape of a section's tensor: its bytes for packed codes."""
    return (spec.nbytes,) if spec.dtype in CODES else spec.shape


def check_sections(produced: Mapping[str, Tensor], specs: Sequence[SectionSpec]) -> None:
    """Holds section tensors against the size law.

    Raises:
        CodecError: a role is missing or unknown, or a tensor has another type or shape than the
            size law says. The message names every difference.
    """
    differences = []
    roles = {spec.role: spec for spec in specs}
    differences += [f"`{role}` is missing" for role in roles if role not in produced]
    differences += [f"`{role}` is not in the size law" for role in produced if role not in roles]
    for role, spec in roles.items():
        tensor = produced.get(role)
        if tensor is None:
            continue
        wanted = (stored_dtype(spec), stored_shape(spec))
        if (tensor.dtype, tuple(tensor.shape)) != wanted:
            differences.append(
                f"`{role}` is {_short(tensor.dtype)} {list(tensor.shape)}, "
                f"the size law says {_short(wanted[0])} {list(wanted[1])}"
            )
    if differences:
        raise CodecError("sections differ from their size law: " + "; ".join(differences))


def to_bytes(tensor: Tensor, spec: SectionSpec) -> memoryview:
    """The bytes of a section tensor, ready to be written.

    Args:
        tensor: a tensor of the type and shape that `spec` asks for, on any device.
        spec: the section.

    Raises:
        CodecError: the tensor is not of that type and shape.
    """
    check_sections({spec.role: tensor}, [spec])
    return tensor_bytes(tensor)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on any device, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    _need_little_endian()
    if not flat.numel():
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def from_bytes(data: bytes | bytearray | memoryview, spec: SectionSpec) -> Tensor:
    """The tensor of a section's bytes, on the CPU; it shares memory with writable `data`.

    Raises:
        CodecError: the number of bytes is not the section's.
    """
    view = memoryview(data).cast("B")
    if view.nbytes != spec.nbytes:
        raise CodecError(
            f"section `{spec.role}` has {view.nbytes} bytes, its size law says {spec.nbytes}"
        )
    _need_little_endian()
    if not view.nbytes:
        return torch.empty(stored_shape(spec), dtype=stored_dtype(spec))
    # A mapped file is read-only and torch would warn: such bytes are copied.
    buffer = bytearray(view) if view.readonly else view
    flat = torch.frombuffer(buffer, dtype=torch.uint8)
    if flat.data_ptr() % 8:
        flat = flat.clone()
    return flat.view(stored_dtype(spec)).reshape(stored_shape(spec))


def read_section(archive: Archive, name: str, spec: SectionSpec) -> Tensor:
    """The tensor of a section of an open archive, its digest and its values checked.

    Raises:
        FormatError: the section is damaged, or breaks its value rule (P5).
    """
    data = archive.read(name)
    problem = spec.values.problem(data, spec.dtype, spec.shape)
    if problem is not None:
        location = archive.sections[name].location
        raise FormatError("P5", problem, location=location).inside(archive.name)
    return from_bytes(data, spec)


def _need_little_endian() -> None:
    if sys.byteorder != "little":
        raise CodecError("archives are little-endian; this machine is not")


def _short(dtype: torch.dtype) -> str:
    return DTYPE_NAMES.get(dtype, str(dtype))
