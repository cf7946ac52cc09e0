"""Scales in terms of the largest one, in which errors are carried, and scales chosen anew."""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder, RowFeedback
from reallm_compiler.codecs.contract import Latent
from reallm_compiler.codecs.rounding import LatentStages
from reallm_compiler.codecs.scale_field import ScaleField

SPREAD = 4.0
"""Weight of what errors do to later columns. Above 1, as these are clipped more often as well."""

PROBES = 64
"""Random vectors by which sums over later columns are estimated."""


def largest_scale(latent: Latent) -> float:
    """The largest scale, in terms of which errors are carried; as it is before rows are coded."""
    return 1.0 if latent.scales is None else latent.scales.largest


def scale_group(stages: LatentStages, coder: ColumnCoder) -> int | None:
    """Columns of a group whose scales are chosen anew; None where they are not."""
    group = stages.group if coder.order is None else None
    return None if group is None or group % coder.step else group


class GroupScales:
    """`RowFeedback.rescale`: scales for what a group of columns has become, row by row.

    A factor of the scales is chosen for each row, that makes the expected cost of the group least.
    Two things are not known before the group is coded. The errors within it are taken to be those
    of the nearest levels at a factor in the middle; carried on, they move the targets. And an
    error moves the targets of all later columns: what is added to their squares costs, as any
    target does, a share of itself, which is the share that those nearest levels lose here.

    Args:
        stages: of the latent.
        coder: of it.
        rows: first and last row.
        largest: the largest scale, in terms of which values are given.
        latent: the latent.
        feedback: along the rows.
        spread: float32 [q], `spread_costs` of that.
    """

    def __init__(
        self,
        stages: LatentStages,
        coder: ColumnCoder,
        rows: slice,
        largest: float,
        latent: Latent,
        feedback: RowFeedback,
        spread: Tensor,
    ) -> None:
        self._stages, self._coder, self._rows = stages, coder, rows
        self._largest, self._range = largest, latent.range
        self._upper = feedback.upper
        self._costs = torch.stack([feedback.importance, spread], dim=1)  # [q, 2]

    def __call__(self, targets: Tensor, column: int) -> tuple[Tensor, Tensor | None]:
        """Scales and zeros [n, 1] for targets [n, m] of a group that begins at a column."""
        columns = slice(column, column + targets.shape[1])
        costs, factors = self._costs[columns], self._stages.stretches or (1.0,)
        scale, zero = self._stages.rescale(targets * self._largest, None, column, 1.0)
        divisor = torch.where(scale > 0, scale / self._largest, torch.inf)
        # The level that stays where it is when the scales are multiplied by a factor.
        middle: float | Tensor = 0.5 if self._range == "unit" else 0.0
        values = targets if zero is None else targets - zero / self._largest
        values = values / divisor
        if self._range == "integer" and zero is not None:
            middle = -zero / self._largest / divisor
        values -= middle

        def error(moved: Tensor, factor: float) -> Tensor:
            levels = self._coder.nearest((moved / factor).add_(middle), columns, rows=self._rows)
            return moved.sub(levels.sub_(middle), alpha=factor)

        first = error(values, factors[len(factors) // 3])
        share = first.square().sum(1) / values.square().sum(1).clamp_(min=1e-30)
        # e = d U^-1 for errors d of the targets, which are moved by e (U - I) = d - e.
        kept = torch.linalg.solve_triangular(
            self._upper[columns, columns], first, upper=True, left=False, unitriangular=True
        )
        moved = values.add_(first).sub_(kept)
        chosen = moved.new_full((len(moved),), factors[0])
        least = torch.full_like(chosen, torch.inf)
        for factor in factors:
            now, spread = (error(moved, factor).square_() @ costs).unbind(1)
            cost = now + SPREAD * share * spread
            better = cost < least
            if not bool(better.any()):
                break
            chosen = torch.where(better, factor, chosen)
            least = torch.where(better, cost, least)
        scale, zero = self._stages.rescale(targets * self._largest, self._rows, column, chosen)
        return scale / self._largest, None if zero is None else zero / self._largest


def spread_costs(feedback: RowFeedback, generator: torch.Generator) -> Tensor:
    """float32 [q]: the cost of the moves that an error of one brings to each later column's target.

    sum_{t>s} D_t (U^-1)[s, t]^2, by the mean of ((U^-1 - I) x)^2 for random x of variances D.
    """
    upper, importance = feedback.upper, feedback.importance
    signs = torch.randint(0, 2, (len(upper), PROBES), generator=generator).to(upper).mul_(2).sub_(1)
    probes = signs.mul_(importance.sqrt()[:, None])
    moves = torch.linalg.solve_triangular(upper, probes, upper=True, unitriangular=True) - probes
    spread: Tensor = moves.square_().mean(1)
    return spread


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
