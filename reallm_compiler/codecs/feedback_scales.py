"""Scales in terms of the largest one, in which errors are carried, and scales chosen anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import Latent
from reallm_compiler.codecs.rounding import LatentStages
from reallm_compiler.codecs.scale_field import ScaleField


def largest_scale(latent: Latent) -> float:
    """The largest scale, in terms of which errors are carried; as it is before rows are coded."""
    return 1.0 if latent.scales is None else latent.scales.largest


def scale_group(stages: LatentStages, coder: ColumnCoder) -> int | None:
    """Columns of a group whose scales are chosen anew; None where they are not."""
    group = stages.group if coder.order is None else None
    return None if group is None or group % coder.step else group


def rescaler(
    stages: LatentStages,
    rows: slice | None,
    largest: float,
    stretch: float | Tensor | None = None,
) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """`RowFeedback.rescale` for rows, in terms of the largest scale.

    The arguments `rows` and `stretch` are those of `LatentStages.rescale`.
    """
    factor = stretch.view(-1) if isinstance(stretch, Tensor) else stretch

    def rescale(targets: Tensor, column: int) -> tuple[Tensor, Tensor]:
        scale, zero = stages.rescale(targets * largest, rows, column, factor)
        return scale / largest, zero / largest

    return rescale


def relative_scales(
    scales: ScaleField | None, rows: slice, order: Tensor | None, like: Tensor, largest: float
) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros of rows in terms of the largest scale, in the coded order.

    Each is float32 [n, q] or [1, q].
    """
    if scales is None:
        return torch.ones(1, like.shape[1], device=like.device), None
    factors = scales.factors(rows.start, rows.stop, largest)
    zeros = scales.zero_rows(rows.start, rows.start + len(factors))
    if zeros is not None:
        zeros = zeros.div_(largest).to(torch.float32)
    if order is None:
        return factors, zeros
    return factors[:, order], None if zeros is None else zeros[:, order]
