"""The nearest codeword of each vector, the errors that it leaves, and sums by codeword.

Assignment is one matrix product and an argmin: features [w x, w] times a table [-c, c^2 / 2] are
half the errors, up to a term without c. Blocks of scores stay in cache. In one dimension the
codewords are kept in order and assignment is a search between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.quantizers.scalar import nearest_levels

SCORES = 1 << 17
"""Scores of a block of assignment, in elements: half a megabyte of float32."""

DEVICE_SCORES = 1 << 26
"""The same on an accelerator."""

CODEWORD_BLOCK = 1 << 13
"""Codewords of a block of scores, for codebooks of more."""

LEAST_ROWS = 1 << 6
"""Vectors of a block of scores, at least: products of fewer are slow, cache or not."""


def assign(values: Tensor, weights: Tensor | None, codebook: Tensor) -> Tensor:
    """The nearest codeword of each vector; the lowest index among equals.

    Args:
        values: [n, d].
        weights: [n, d] for weights of elements; None or [n] where they cannot matter.
        codebook: [K, d]; ascending for d = 1.

    Returns:
        int64 [n].
    """
    if codebook.shape[1] == 1:
        return nearest_levels(values.reshape(-1), codebook[:, 0])
    per_element = weights is not None and weights.dim() == 2
    table = _score_table(codebook, per_element=per_element)
    features = _features(values, weights)
    n, count = len(features), len(codebook)
    width = min(count, CODEWORD_BLOCK)
    on_cpu = values.device.type == "cpu"
    height = max(LEAST_ROWS, (SCORES if on_cpu else DEVICE_SCORES) // width)
    result = torch.empty(n, dtype=torch.int64, device=values.device)
    buffer = torch.empty(min(height, n), width, dtype=values.dtype, device=values.device)
    for first in range(0, n, height):
        part, target = features[first : first + height], result[first : first + height]
        least: Tensor | None = None
        for start in range(0, count, width):
            scores = buffer[: len(part), : min(width, count - start)]
            torch.mm(part, table[:, start : start + width], out=scores)
            # numpy's argmin is several times faster than torch's.
            if on_cpu and width == count:
                scores.numpy().argmin(1, out=target.numpy())
                continue
            index = torch.from_numpy(scores.numpy().argmin(1)) if on_cpu else scores.argmin(1)
            if width == count:
                target.copy_(index)
                continue
            found = scores.gather(1, index[:, None])[:, 0]
            if least is None:
                least = found
                target.copy_(index)
                continue
            nearer = found < least
            least = torch.where(nearer, found, least)
            target.copy_(torch.where(nearer, index + start, target))
    return result


def _score_table(codebook: Tensor, *, per_element: bool) -> Tensor:
    """The right-hand side of assignment: [2 d, K] for weights of elements, else [d + 1, K]."""
    half_squares = codebook.square() / 2
    if not per_element:
        half_squares = half_squares.sum(1, keepdim=True)
    return torch.cat([-codebook, half_squares], dim=1).t().contiguous()


def _features(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None or weights.dim() == 1:
        return torch.cat([values, values.new_ones(len(values), 1)], dim=1)
    return torch.cat([values * weights, weights], dim=1)


def errors(values: Tensor, weights: Tensor | None, codebook: Tensor) -> Tensor:
    """float64 [n]: the weighted squared distance of each vector to its nearest codeword."""
    if len(codebook) == 1:
        difference = values - codebook
    else:
        difference = values - codebook[assign(values, weights, codebook)]
    squares = difference.square_()
    if weights is not None:
        squares *= weights if weights.dim() == 2 else weights[:, None]
    return squares.sum(1, dtype=torch.float64)


def sums_by_codeword(values: Tensor, nearest: Tensor, count: int) -> Tensor:
    """Sums of `values` [n, m] by codeword, float64 [K, m], in a fixed order of addition."""
    if values.device.type == "cpu":
        parts = [
            torch.bincount(nearest, weights=column, minlength=count)
            for column in values.to(torch.float64).unbind(1)
        ]
        return torch.stack(parts, dim=1)
    return _sums_of_runs(values, nearest, count)


def _sums_of_runs(values: Tensor, nearest: Tensor, count: int) -> Tensor:
    """`sums_by_codeword` on an accelerator, where sums in no fixed order would change the bytes."""
    index = nearest.sort(stable=True)
    lengths = torch.bincount(nearest, minlength=count)
    ordered = values[index.indices].to(torch.float64)
    sums: Tensor = torch.segment_reduce(ordered, "sum", lengths=lengths, axis=0, unsafe=True)
    return sums
