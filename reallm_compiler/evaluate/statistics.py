"""What a matrix looks like: pure functions from a tensor [p, q] to a few numbers.

Each number stands beside what white noise of the same shape, or the same matrix with its rows in
random order, would give: a number alone says little. All sums are in float64, so the numbers do
not depend on the checkpoint's type. `survey.py` draws conclusions from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
"""Weights along a row that share a scale in `block_scales`."""

Z_FOUND = 6
"""Deviations of a random order by which neighbours must stand out to count."""

SIGMAS = 4
"""Weights beyond so many standard deviations count as outliers."""

_CHUNK = 2**22
"""Weights cast to float64 at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outliers:
    """How heavy the tails are.

    Attributes:
        rms: root of the mean square.
        kurtosis: fourth central moment / squared variance: 3 for a Gaussian, 0 for a constant.
        max_over_rms: largest magnitude / rms.
        beyond: share of the weights further than 4 standard deviations from the mean: 6.3e-5 for
            a Gaussian.
    """

    rms: float
    kurtosis: float
    max_over_rms: float
    beyond: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """How much alike adjacent lines (rows, or columns) are.

    Attributes:
        correlation: mean product of adjacent lines / variance, the matrix's mean taken off.
        shuffled: what it is on average when the lines are in random order: what all lines share,
            such as a mean of each column. A low-rank part takes that off in any order.
        ordered: (correlation - shuffled) / (1 - shuffled): what the order adds, 1 for a matrix
            that is smooth along this axis, about 0 where the order means nothing.
        z: correlation - shuffled in standard deviations of a random order.
    """

    correlation: float
    shuffled: float
    ordered: float
    z: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockScales:
    """How much the scale changes between blocks of 64 weights along the rows.

    Attributes:
        spread: standard deviation of log2 of the blocks' rms.
        noise_spread: the same for white Gaussian noise, which is not 0 as blocks are short.
    """

    spread: float
    noise_spread: float


def outliers(weight: Tensor) -> Outliers:
    """Moments and tails of all weights of [p, q]."""
    count = weight.numel()
    mean = _sum(weight, lambda part: part.sum()) / count
    square = _sum(weight, lambda part: part.square().sum()) / count
    variance = _sum(weight, lambda part: (part - mean).square().sum()) / count
    fourth = _sum(weight, lambda part: (part - mean).square().square().sum()) / count
    limit = SIGMAS * math.sqrt(variance)
    beyond = _sum(weight, lambda part: ((part - mean).abs() > limit).sum())
    largest = float(weight.abs().max())
    rms = math.sqrt(square)
    return Outliers(
        rms=rms,
        kurtosis=fourth / variance**2 if variance else 0.0,
        max_over_rms=largest / rms if rms else 0.0,
        beyond=beyond / count,
    )


def neighbours(weight: Tensor) -> tuple[Neighbours, Neighbours]:
    """How much alike adjacent rows are, and adjacent columns, of [p, q].

    The value of a random order is exact: the mean over all pairs of lines. For its deviation
    adjacent pairs count as independent draws from all pairs.
    """
    mean = _sum(weight, lambda part: part.sum()) / weight.numel()
    # The Gram matrices of both sides have the same sum of squares.
    squares = float(gram(weight, mean).square().sum())
    return _along_rows(weight, mean, squares), _along_rows(weight.t(), mean, squares)


def _along_rows(weight: Tensor, mean: float, gram_squares: float) -> Neighbours:
    p, q = weight.shape
    if p < 2:
        return Neighbours(correlation=0.0, shuffled=0.0, ordered=0.0, z=0.0)
    norms = torch.zeros(p, dtype=torch.float64, device=weight.device)  # |w_i|^2
    sums = torch.zeros(q, dtype=torch.float64, device=weight.device)  # of each column
    adjacent = 0.0
    rows = max(1, _CHUNK // q)
    for at in range(0, p, rows):
        block = weight[at : at + rows + 1].double() - mean  # one row more: the next one's neighbour
        adjacent += float((block[:-1] * block[1:]).sum())
        own = block[:rows]
        norms[at : at + rows] = own.square().sum(dim=1)
        sums += own.sum(dim=0)
    total, shared = float(norms.sum()), float(sums.square().sum())
    if total <= 1e-30:
        return Neighbours(correlation=0.0, shuffled=0.0, ordered=0.0, z=0.0)
    pairs = p * (p - 1)
    variance = total / (p * q)
    correlation = adjacent / (p - 1) / q / variance
    shuffled = (shared - total) / pairs / q / variance
    extra = correlation - shuffled
    varied = 1 - shuffled > 1e-6  # else all rows are one row
    # What a column has in all rows does not change the order of the products: it is taken off
    # before products of two rows are compared. G is their Gram matrix, H G H the same after that.
    with_sums = torch.cat(
        [(weight[at : at + rows].double() - mean) @ sums for at in range(0, p, rows)]
    )  # G 1, [p]
    squares = gram_squares - 2 * float(with_sums.square().sum()) / p + (shared / p) ** 2
    diagonal = norms - 2 * with_sums / p + shared / p**2  # of H G H
    typical = -float(diagonal.sum()) / pairs
    spread = (squares - float(diagonal.square().sum())) / pairs - typical**2
    deviation = math.sqrt(max(0.0, spread) / (p - 1)) / q / variance
    return Neighbours(
        correlation=correlation,
        shuffled=shuffled,
        ordered=extra / (1 - shuffled) if varied else 0.0,
        z=extra / deviation if varied and deviation > 0 else 0.0,
    )


def block_scales(weight: Tensor, block: int = BLOCK) -> BlockScales:
    """How much the scale changes between blocks along the rows.

    Blocks of zeros alone are left out.
    """
    means = block_squares(weight, block)
    means = means[means > 0]
    spread = float(means.log2().std(correction=0)) / 2 if len(means) else 0.0
    return BlockScales(spread=spread, noise_spread=noise_spread(min(block, weight.shape[1])))


def noise_spread(size: int) -> float:
    """Standard deviation of log2 of the rms of `size` white Gaussian weights."""
    # ln of the mean of n squared Gaussians has the variance trigamma(n / 2).
    half = torch.tensor(size / 2, dtype=torch.float64)
    return 0.5 * math.sqrt(float(torch.polygamma(1, half))) / math.log(2)


def line_squares(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squares of the rows [p] and of the columns [q] of [p, q], in float64 on the CPU."""
    p, q = weight.shape
    rows: list[Tensor] = []
    columns = torch.zeros(q, dtype=torch.float64, device=weight.device)
    step = max(1, _CHUNK // q)
    for at in range(0, p, step):
        squares = weight[at : at + step].double().square()
        rows.append(squares.mean(dim=1).cpu())
        columns += squares.sum(dim=0)
    return torch.cat(rows), columns.cpu() / p


def block_squares(weight: Tensor, block: int = BLOCK) -> Tensor:
    """Mean squares of blocks along the rows of [p, q], in float64 on the CPU.

    A ragged end counts as a block.
    """
    p, q = weight.shape
    block = min(block, q)
    whole = q // block * block
    squares = [_block_squares(weight[:, :whole].reshape(p, -1, block))]
    if whole < q:
        squares.append(_block_squares(weight[:, whole:].reshape(p, 1, -1)))
    return torch.cat([part.flatten() for part in squares])


def structure_bits(rows: Neighbours, columns: Neighbours) -> float:
    """Bits per weight that an ideal coder gains from the order of rows and columns.

    The gain of predicting each weight from its neighbours where both axes are first-order
    processes: 1/2 log2(1 / ((1 - a^2) (1 - b^2))), a and b being `ordered`. Only what stands out
    from a random order (|z| >= `Z_FOUND`) counts.
    """
    found = 0.0
    for axis in (rows, columns):
        if abs(axis.z) >= Z_FOUND:
            found += 0.5 * math.log2(1 / max(1e-6, 1 - min(1.0, abs(axis.ordered)) ** 2))
    return found


def relative_total(errors: Sequence[float], norms: Sequence[float]) -> float:
    """Relative error of several matrices as one: root of sum (e n)^2 / sum n^2."""
    whole = math.fsum(norm**2 for norm in norms)
    lost = math.fsum((error * norm) ** 2 for error, norm in zip(errors, norms, strict=True))
    return math.sqrt(lost / whole) if whole else 0.0


def gram(weight: Tensor, mean: float) -> Tensor:
    """The Gram matrix of the shorter side of [p, q] less `mean`, in float64."""
    if weight.shape[0] > weight.shape[1]:
        weight = weight.t()
    low, high = weight.shape
    gram = torch.zeros(low, low, dtype=torch.float64, device=weight.device)
    columns = max(1, _CHUNK // low)
    for at in range(0, high, columns):
        part = weight[:, at : at + columns].double() - mean
        gram.addmm_(part, part.t())
    return gram


def _block_squares(blocks: Tensor) -> Tensor:
    """Mean square of each block of [p, n, block] as float64 [p, n]."""
    rows = max(1, _CHUNK // (blocks.shape[1] * blocks.shape[2] or 1))
    parts = [
        blocks[at : at + rows].double().square().mean(dim=2).cpu()
        for at in range(0, len(blocks), rows)
    ]
    return torch.cat(parts)


def _sum(weight: Tensor, part: Callable[[Tensor], Tensor]) -> float:
    """The sum over chunks of `part` of the weights as float64."""
    flat = weight.reshape(-1)
    return math.fsum(
        float(part(flat[at : at + _CHUNK].double())) for at in range(0, len(flat), _CHUNK)
    )
