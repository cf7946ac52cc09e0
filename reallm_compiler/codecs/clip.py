"""How far the levels of a group reach: a grid of shares of its largest weight is tried (AWQ).

For each share all groups are scaled, coded and decoded, and each group keeps the one with the least
cost: the squares of the errors of its weights, or of its outputs, e H e^T with the part of the Gram
matrix H of the inputs that belongs to its columns (Lin et al. 2023; Shao et al. 2023 learn it).
Where groups are no runs of a row, the diagonal of H stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import PANEL
from reallm_compiler.codecs.scales import groups
from reallm_compiler.stages import GroupScales
from reallm_compiler.storage.scales import TRIED

SHARES = tuple(1 - step / 20 for step in range(TRIED))
"""What is tried, in order; among equals the first is kept."""

Band = tuple[slice, Tensor]
"""Rows, and H [q, q] of their columns in the order in which they are coded."""


def best_clip(
    params: GroupScales,
    latent: Tensor,
    coded: Callable[[Tensor], Tensor],
    bands: Callable[[], Iterable[Band]] | None,
) -> Tensor:
    """The share for each group, [groups], of the type of the latent.

    Args:
        params: the scales.
        latent: [p, q], as it will be scaled.
        coded: shares [groups] -> the latent [p, q] as it is decoded with them, a fresh tensor.
        bands: gives the metric of the inputs for all rows; None for that of weights.
    """
    count = sum(len(group) for group in groups(params, latent))
    best = least = latent.new_empty(0)
    for share in SHARES:
        shares = latent.new_full((count,), share)
        costs = _costs(params, coded(shares).sub_(latent), bands)
        if share == 1:
            best, least = shares, costs
            continue
        better = costs < least
        best, least = torch.where(better, shares, best), torch.where(better, costs, least)
    return best


def _costs(
    params: GroupScales, error: Tensor, bands: Callable[[], Iterable[Band]] | None
) -> Tensor:
    """What the errors [p, q] of each group cost, [groups]; they are used up."""
    if bands is None:
        error.square_()
    else:
        q = error.shape[1]
        for rows, gram in bands():
            weigh = _weigher(params, gram.to(error.device, error.dtype))
            for part in torch.split(error[rows], max(PANEL // q, 1)):
                part.mul_(weigh(part))
    return torch.cat([group.sum(1) for group in groups(params, error)])


def _weigher(params: GroupScales, gram: Tensor) -> Callable[[Tensor], Tensor]:
    """Errors [n, q] -> errors times the part of H that joins the columns of a group."""
    q, block = len(gram), params.block
    if params.per in ("row", "tensor"):
        return lambda error: error @ gram
    if params.per == "block" and q % block == 0:
        each = gram.view(q // block, block, q // block, block)
        parts = each.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [blocks, block, block]

        def by_blocks(error: Tensor) -> Tensor:
            moved = error.view(-1, q // block, block).transpose(0, 1) @ parts  # [blocks, n, block]
            return moved.transpose(0, 1).reshape(error.shape)

        return by_blocks
    return lambda error: error * gram.diagonal()
