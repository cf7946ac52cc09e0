"""What scales are worth: magnitudes that change from row to row, column to column, block to block.

Weights of one deviation need one codebook. A codebook for weights of many deviations spends its
codes on all of them. With as many bits for each vector of k weights its error is at a high rate
(Zador; Gersho 1979)

    D = C N^(-2/k) (integral of f^(k / (k + 2)))^((k + 2) / k)

for N codes and vectors of density f. Here f is a mixture of Gaussians, one for each group of
weights that could have a scale; with its scales the same codebook sees one Gaussian. What that
saves is 1/2 log2 of the ratio of both errors, in bits per weight at equal error. Rounding to a
fixed grid gains more, as the largest magnitude stretches the grid for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reallm_compiler.evaluate.statistics import BLOCK, block_squares, line_squares, noise_spread

Group = Literal["row", "column", "block"]

SCALE_BITS = 16
"""Bits of a scale for a row or a column in `cost_bits`."""

BLOCK_COST_BITS = (8 + 32 / 256) / BLOCK
"""Bits per weight of scales for blocks: 8 bits under a super-scale for 256 of them."""

_RANGE = 12.0
"""Octaves below the largest deviation that are distinguished: what is smaller costs nothing."""

_BINS = 128
_POINTS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleGain:
    """What a scale for each group of weights is worth.

    Attributes:
        per: the group, as a recipe names it: each `row`, each `column`, or each `block` of 64
            consecutive weights.
        gain_bits: bits per weight that it saves a codebook of pairs of weights at equal error,
            less what the same would seem to save in white noise; about 0 for noise.
        cost_bits: bits per weight of the scales: 16 for each row or column, 8 for each block and
            32 for 256 blocks.
    """

    per: Group
    gain_bits: float
    cost_bits: float

    @property
    def net_bits(self) -> float:
        """Bits per weight saved, the scales paid."""
        return self.gain_bits - self.cost_bits


def scale_gains(weight: Tensor) -> tuple[ScaleGain, ScaleGain, ScaleGain]:
    """Gains of a scale for each row, column and block of [p, q].

    A ragged end of the rows is left out of the blocks: the size law of scales asks for groups of
    one size.
    """
    p, q = weight.shape
    block = min(BLOCK, q)
    rows, columns = line_squares(weight)
    return (
        ScaleGain(per="row", gain_bits=_beyond_noise(rows, q), cost_bits=SCALE_BITS / q),
        ScaleGain(per="column", gain_bits=_beyond_noise(columns, p), cost_bits=SCALE_BITS / p),
        ScaleGain(
            per="block",
            gain_bits=_beyond_noise(block_squares(weight[:, : q // block * block], block), block),
            cost_bits=BLOCK_COST_BITS,
        ),
    )


def codebook_gain(levels: Tensor) -> float:
    """Bits per weight that scales save a codebook of pairs (k = 2).

    Args:
        levels: log2 of the deviation of each group, all groups of one size.
    """
    levels = (levels - levels.max()).clamp_min(-_RANGE)  # the largest deviation is 1
    low = float(levels.min())
    if low > -1e-6:
        return 0.0
    counts = torch.histc(levels, bins=_BINS, min=low, max=0.0)
    width = -low / _BINS
    centres = low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)
    held = counts > 0
    shares, deviations = counts[held] / len(levels), torch.exp2(centres[held])
    # The density at radius r, on a grid of ln r: f(r) = sum share exp(-r^2 / 2 s^2) / 2 pi s^2.
    grid = torch.linspace(
        math.log(1e-3 * float(deviations.min())), math.log(10.0), _POINTS, dtype=torch.float64
    )
    radius = grid.exp()
    parts = torch.exp(-0.5 * (radius[:, None] / deviations) ** 2) / deviations**2
    density = parts @ shares / (2 * math.pi)
    whole = torch.trapezoid(density.sqrt() * 2 * math.pi * radius**2, grid)
    # One Gaussian of deviation s has the integral 2 s sqrt(2 pi).
    mean_square = (shares * deviations**2).sum()
    return 0.5 * math.log2(float(whole**2 / (8 * math.pi * mean_square)))


def _beyond_noise(squares: Tensor, size: int) -> float:
    """The gain of scales by mean squares of groups of `size`, less that of noise.

    The levels of noise are taken as normal; groups of zeros alone are left out.
    """
    squares = squares[squares > 0]
    if not len(squares):
        return 0.0
    found = codebook_gain(0.5 * squares.log2())
    quantiles = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    return found - codebook_gain(noise_spread(size) * torch.special.ndtri(quantiles))
