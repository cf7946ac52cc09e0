"""compressed-tensors' `pack-quantized` layers, which vLLM and transformers run.

    weight_packed      int32 [p, q bits / 32], codes side by side, the first one lowest
    weight_scale       [p, groups] in the model's type
    weight_zero_point  int32 [p bits / 32, groups], packed along the rows; not for symmetric layers
    weight_shape       int64 [2]: p and q

W = scale (code - zero), computed in the model's type: the scales must be numbers of that type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.packing import pack
from reallm_compiler.integrations.grids import Grid, UnfitError
from reallm_compiler.integrations.packed_folders import exactly

WIDTHS = (2, 4, 8)
"""Bits of a code. Other widths are packed differently by different versions of the library."""

WORD = 32
"""Bits of an integer that holds packed codes."""


class CompressedTensorsLayout:
    """Layers of a folder for compressed-tensors."""

    title = "compressed-tensors"
    wide_products = False

    def __init__(self) -> None:
        self._layers: dict[tuple[int, bool, int | None], list[str]] = {}

    def add(self, name: str, grid: Grid) -> Mapping[str, Tensor]:
        """Packed codes, scales, and zero points where they differ from the middle."""
        grid.check_order()
        zeros = integer_zeros(grid)
        p, q = grid.codes.shape
        scale = grid.by_rows(exactly(grid.scale, grid.dtype, "scales"))
        symmetric = bool((zeros == 2 ** (grid.bits - 1)).all())
        if not symmetric and p * grid.bits % WORD:
            raise UnfitError(f"{p} rows of zero points do not fill whole 32-bit words")
        whole = grid.group == q
        self._layers.setdefault((grid.bits, symmetric, None if whole else grid.group), []).append(
            name
        )
        tensors = {
            "weight_packed": words(grid.codes, grid.bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor([p, q], dtype=torch.int64),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros.t(), grid.bits).t()
        return tensors

    def decoded(self, grid: Grid) -> Tensor:
        """Products in the model's type."""
        return integer_weights(grid)

    def config(self, dense: list[str], head: str | None) -> dict[str, Any]:
        """A group of layers for each width, symmetry and group size."""
        groups = {}
        for number, (key, names) in enumerate(self._layers.items()):
            bits, symmetric, size = key
            groups[f"group_{number}"] = {
                "targets": ["Linear"] if len(self._layers) == 1 else names,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "channel" if size is None else "group",
                    "group_size": size,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": dense,
        }


def integer_zeros(grid: Grid) -> Tensor:
    """Zero points [p, groups of a row] of a grid of integers of a width that fills words.

    Raises:
        UnfitError: it is none.
    """
    if not grid.integers:
        raise UnfitError("its levels are no integers: use `uniform` with `affine` scales")
    if grid.bits not in WIDTHS:
        raise UnfitError(f"its codes have {grid.bits} bits: use {', '.join(map(str, WIDTHS))}")
    if grid.codes.shape[1] * grid.bits % WORD:
        raise UnfitError(f"a row of {grid.codes.shape[1]} codes does not fill whole 32-bit words")
    return grid.by_rows(grid.zeros())


def integer_weights(grid: Grid) -> Tensor:
    """scale (code - zero) in the model's type, [p, q]."""
    steps = grid.codes.to(torch.int16) - grid.wide(grid.zeros()).to(torch.int16)
    return steps.to(grid.dtype) * grid.wide(grid.scale).to(grid.dtype)


def words(codes: Tensor, bits: int) -> Tensor:
    """Codes [n, m] as int32 [n, m bits / 32]; rows fill whole words."""
    return pack(codes, bits).view(torch.int32).view(len(codes), -1)
