"""Weights as blocks of 32 in the types of GGUF, each with a float16 scale d.

    Q4_0  d (c - 8)    4.5 bits a weight        Q5_0  d (c - 16)   5.5 bits
    Q4_1  d c + m      5.0 bits                 Q8_0  d c          8.5 bits, c signed

A block of a `Grid` is one or several of these, if its scale is a float16 number. All that programs
of this family compute is float32, so that what they see is the archive's weight before that is
rounded to the model's type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.integrations.grids import Grid, UnfitError

BLOCK = 32
"""Weights of a block."""


@dataclass(frozen=True, slots=True)
class Steps:
    """A grid of integers, by blocks.

    Attributes:
        steps: int16 [blocks, 32]: what is multiplied by the scale, code less zero point.
        codes: uint8 [blocks, 32].
        scale: float32 [blocks].
        offset: float32 [blocks], -scale zero.
    """

    steps: Tensor
    codes: Tensor
    scale: Tensor
    offset: Tensor


def steps_of(grid: Grid) -> Steps:
    """The blocks of a grid.

    Raises:
        UnfitError: its levels are no integers, or its groups do not divide into blocks of rows.
    """
    if not grid.integers:
        raise UnfitError("its levels are no integers: use `uniform` with `affine` scales")
    if grid.group % BLOCK or grid.codes.shape[1] % grid.group:
        raise UnfitError(f"groups of {grid.group} weights are no blocks of {BLOCK} within rows")
    grid.check_order()
    zero = grid.zeros()
    each = grid.group // BLOCK
    codes = grid.codes.view(-1, BLOCK)

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(each)

    return Steps(
        steps=codes.to(torch.int16) - spread(zero)[:, None].to(torch.int16),
        codes=codes,
        scale=spread(grid.scale),
        offset=spread(-grid.scale * zero),
    )


def q4_0(blocks: Steps) -> Tensor | None:
    """Bytes [blocks, 18]; None if the steps do not lie in [-8, 7]."""
    if not _within(blocks.steps, -8, 7):
        return None
    return _joined(_f16(blocks.scale), _halves(blocks.steps + 8))


def q4_1(blocks: Steps) -> Tensor | None:
    """Bytes [blocks, 20]; None for codes of more bits, or if an offset is no float16 number."""
    offset = _f16(blocks.offset)
    if offset is None or not _within(blocks.codes, 0, 15):
        return None
    return _joined(_f16(blocks.scale), offset, _halves(blocks.codes))


def q5_0(blocks: Steps) -> Tensor | None:
    """Bytes [blocks, 22]; None if the steps do not lie in [-16, 15]."""
    if not _within(blocks.steps, -16, 15):
        return None
    codes = blocks.steps + 16
    weights = 2 ** torch.arange(8)
    high = ((codes >> 4).view(-1, 4, 8) * weights).sum(2).to(torch.uint8)  # [blocks, 4 bytes]
    return _joined(_f16(blocks.scale), high, _halves(codes & 15))


def q8_0(blocks: Steps) -> Tensor | None:
    """Bytes [blocks, 34]; None if the steps do not lie in [-128, 127]."""
    if not _within(blocks.steps, -128, 127):
        return None
    return _joined(_f16(blocks.scale), blocks.steps.to(torch.int8).view(torch.uint8))


TYPES: dict[str, Callable[[Steps], Tensor | None]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q8_0": q8_0,
}
"""Types by name, the smallest first."""


def packed(grid: Grid) -> tuple[str, Tensor]:
    """The name of the smallest type that holds a grid [p, q], and its bytes, uint8 [p, n].

    Raises:
        UnfitError: none does.
    """
    blocks = steps_of(grid)
    if _f16(blocks.scale) is None:
        raise UnfitError("its scales are no float16 numbers: store them with `dtype: float16`")
    for name, pack in TYPES.items():
        found = pack(blocks)
        if found is not None:
            return name, found.view(len(grid.codes), -1)
    raise UnfitError("its codes less their zero points need more than 8 bits")


def _within(values: Tensor, least: int, most: int) -> bool:
    low, high = torch.aminmax(values)
    return int(low) >= least and int(high) <= most


def _f16(values: Tensor) -> Tensor | None:
    """Bytes [blocks, 2] of float32 numbers as float16; None if it does not hold one of them."""
    half = values.to(torch.float16)
    exact = torch.equal(half.to(torch.float32), values)
    return half.view(torch.uint8).view(-1, 2) if exact else None


def _halves(codes: Tensor) -> Tensor:
    """Codes [blocks, 32] below 16 as bytes [blocks, 16]: the first half in the lower bits."""
    codes = codes.to(torch.uint8)
    return codes[:, : BLOCK // 2] | codes[:, BLOCK // 2 :] << 4


def _joined(*parts: Tensor | None) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found, dim=1) if len(found) == len(parts) else None
