"""Learned values of a quantizer as they are stored: codewords of vectors, tables of a trellis."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.numbers import stored
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.codecs.windows import two_planes
from reallm_compiler.storage.base import DTYPES

HINT = "give the matrix `scales`, or store the codebook with `dtype: float32`"

INT8_LEVELS = 127
"""Largest magnitude of an entry of type int8."""


def store_codebook(dtype: str, values: Tensor) -> Sections:
    """Sections of learned values, rounded to their stored type.

    Args:
        dtype: the recipe's word for the type; `int8` has one float32 scale for all values.
        values: of any shape.

    Raises:
        CodecError: the type is too narrow for them.
    """
    if dtype != "int8":
        return {"codebook": stored(values, TORCH_DTYPES[DTYPES[dtype]], "codebook values", HINT)}
    largest = values.abs().amax() / INT8_LEVELS
    if not largest:  # zeros have any scale
        largest = torch.ones_like(largest)
    scale = stored(largest.view(1), torch.float32, "the scale of the codebook", HINT)
    codes = (values / scale.to(values.dtype)).round_().clamp_(-INT8_LEVELS, INT8_LEVELS)
    return {"codebook": codes.to(torch.int8).contiguous(), "codebook_scale": scale}


def read_codebook(sections: Mapping[str, Tensor], like: Tensor, dtype: torch.dtype) -> Tensor:
    """The stored values in the precision `dtype`, on the device of `like`."""
    values = sections["codebook"].to(like.device, dtype)
    scale = sections.get("codebook_scale")
    return values if scale is None else values * scale.to(like.device, dtype)


def codebook_table(sections: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """The stored values as int8 planes [planes, ...], and their unit: exact for those of int8."""
    values, scale = sections["codebook"], sections.get("codebook_scale")
    if scale is not None:
        return values[None], float(scale)
    return two_planes(values)
