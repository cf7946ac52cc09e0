"""What packed codes stand for, and how transforms act on activations: tensors beside the form.

`storage.windows` says how codes are read; here are the values that a kernel looks up, and the
factors and blocks by which inputs and outputs are mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOW = 254
"""What the high plane of a number counts: it is 254 high + low, both of int8 from -127 to 127."""

LARGEST = LOW * 127 + 126
"""The largest integer that is split into two planes: its high plane is 127 still."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowValues:
    """What the windows of a latent's codes stand for: weight = unit x entry + shift.

    Attributes:
        table: int8 [planes, 2^window, dim], with several codes of a weight [planes, books x
            2^window, dim]; None for entries that are the windows themselves.
        unit: of an entry.
        shift: what is added to each weight.
        order: int64 [q], the columns in the coded order; None if that is their own.
        factors: float32 [q], what each column's weights are multiplied by; None for ones.
        rest: of the further codes, if there are any.
    """

    table: Tensor | None
    unit: float
    shift: float = 0.0
    order: Tensor | None = None
    factors: Tensor | None = None
    rest: WindowValues | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """How a transform acts on one side: factors, and orthogonal Hadamard matrices of blocks.

    Inputs are multiplied by the factors and then mixed, outputs mixed and then multiplied.

    Attributes:
        factors: float32 [n]; None for ones.
        block: numbers that are mixed with each other, a power of two; 1 for none.
    """

    factors: Tensor | None = None
    block: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFactors:
    """A residual R = L1 diag(scales) L2 as it is stored.

    Attributes:
        left: L1 [p, r], of a floating type or int8.
        right: L2 [r, q], of the same type.
        scales: float32 [r]; None for ones.
    """

    left: Tensor
    right: Tensor
    scales: Tensor | None = None


def split(integers: Tensor) -> tuple[Tensor, Tensor]:
    """The planes int8 (high, low) of integers in [-`LARGEST`, `LARGEST`], of their shape."""
    high = (integers.to(torch.float64) / LOW).round()
    return high.to(torch.int8), (integers - LOW * high).to(torch.int8)


def two_planes(values: Tensor) -> tuple[Tensor, float]:
    """A table int8 [2, ...] of values, and its unit: about 16 bits of the largest one."""
    wide = values.to(torch.float64)
    unit = float(wide.abs().max()) / LARGEST or 1.0
    high, low = split((wide / unit).round().clamp_(-LARGEST, LARGEST))
    return torch.stack([high, low]), unit
