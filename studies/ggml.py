"""llama.cpp's codes of blocks with an importance matrix, by its own library.

The functions are those that `llama-quantize` calls for each matrix; the importance of a column is
the mean square of its input, which is what `llama-imatrix` measures and what the diagonal of the
moments of `reallm calibrate` is. Codes are for blocks of 256 weights of a row (IQ4_NL: 32): rows
that are no whole number of blocks are joined until they are, as a matrix of fewer and longer rows.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = "llama-cpp-python"

TYPES = {
    "IQ1_M": 29,
    "IQ2_XXS": 16,
    "IQ2_XS": 17,
    "IQ2_S": 22,
    "Q2_K": 10,
    "IQ3_XXS": 18,
    "IQ3_S": 21,
    "Q3_K": 11,
    "IQ4_XS": 23,
    "IQ4_NL": 20,
    "Q4_K": 12,
    "Q5_K": 13,
}
"""Numbers of `enum ggml_type`."""

Quantize = Callable[[Tensor, Tensor], tuple[Tensor, int]]
"""A matrix [p, q] and the importance of its columns [q] -> the decoded matrix, and its bits."""


class Traits(ctypes.Structure):
    """`struct ggml_type_traits`: what is known of a type."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def library() -> ctypes.CDLL:
    """The library that comes with the package `llama-cpp-python`.

    Raises:
        ImportError: it is not installed.
    """
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise ImportError("No module named 'llama_cpp'")
    (path,) = Path(found.origin).parent.glob("lib/*ggml-base.*")
    loaded = ctypes.CDLL(str(path))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    )
    loaded.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    loaded.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    return loaded


def coded(kind: int) -> Quantize:
    """Coding by a type of ggml."""
    functions = library()
    traits = functions.ggml_get_type_traits(kind).contents

    def quantize(weight: Tensor, importance: Tensor) -> tuple[Tensor, int]:
        p, q = weight.shape
        columns = math.lcm(q, traits.blck_size)
        joined = columns // q
        if p % joined:
            raise ValueError(f"{p} rows of {q} weights are no whole number of blocks")
        source = weight.float().contiguous()
        columns_importance = importance.float().repeat(joined)  # [columns]
        nbytes = traits.type_size * (weight.numel() // traits.blck_size)
        data = torch.empty(nbytes, dtype=torch.uint8)
        written = functions.ggml_quantize_chunk(
            kind,
            source.data_ptr(),
            data.data_ptr(),
            0,
            p // joined,
            columns,
            columns_importance.data_ptr(),
        )
        assert written == nbytes
        decoded = torch.empty(p, q)
        traits.to_float(data.data_ptr(), decoded.data_ptr(), weight.numel())
        return decoded, 8 * nbytes

    return quantize


def methods() -> list[tuple[str, Callable[[], Quantize]]]:
    """Name and maker of each."""
    return [(f"llama.cpp {name}", partial(coded, kind)) for name, kind in TYPES.items()]
