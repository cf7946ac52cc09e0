"""bitsandbytes' 4-bit layers: NF4 codes in blocks with one float32 scale each.

    weight          uint8 [p q / 2, 1], two codes a byte, the first in the upper half
    weight.absmax   float32 [p q / block]
    weight.quant_map, weight.quant_state.bitsandbytes__nf4   the levels, and type, block and shape

The library computes level x absmax in float32 and rounds to the model's type once, as reallm does,
so scales of any stored type fit, those of two levels as well: they are written in full. Blocks
must divide the rows: its kernel for the CPU (0.50) decodes other matrices wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.numbers import type_name
from reallm_compiler.integrations.grids import Grid, UnfitError

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels that its kernels have as constants."""

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Sizes of blocks that its kernels have."""


class BitsandbytesLayout:
    """Layers of a folder for bitsandbytes."""

    title = "bitsandbytes"
    wide_products = True

    def __init__(self) -> None:
        self._dtype = torch.float32

    def add(self, name: str, grid: Grid) -> Mapping[str, Tensor]:
        """Codes, scales and what describes them."""
        levels = torch.tensor(NF4)
        if grid.offset is not None or not torch.equal(grid.levels, levels):
            raise UnfitError("its levels are not those of NF4: use `normal_float` with 4 bits")
        if grid.group not in BLOCKS:
            raise UnfitError(
                f"{grid.group} weights share a scale: use blocks of {', '.join(map(str, BLOCKS))}"
            )
        grid.check_order()
        self._dtype = grid.dtype
        pairs = grid.codes.view(-1, 2)
        state = {
            "quant_type": "nf4",
            "blocksize": grid.group,
            "dtype": type_name(grid.dtype),
            "shape": list(grid.codes.shape),
        }
        text = json.dumps(state).encode()
        return {
            "weight": (pairs[:, 0] << 4 | pairs[:, 1])[:, None],
            "weight.absmax": grid.by_rows(grid.scale).reshape(-1),
            "weight.quant_map": levels,
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8),
        }

    def decoded(self, grid: Grid) -> Tensor:
        """Products in float32."""
        values = grid.levels[grid.codes.to(torch.int64)] * grid.wide(grid.scale)
        return values.to(grid.dtype)

    def config(self, dense: list[str], head: str | None) -> dict[str, Any]:
        """As transformers' `BitsAndBytesConfig`."""
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": type_name(self._dtype),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": dense,
        }
