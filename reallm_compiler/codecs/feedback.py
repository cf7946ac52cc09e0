"""Rounding with feedback: errors are carried into what is not coded yet.

The error E of a latent costs tr(G E H E^T). With H = U diag(D) U^T, U unit upper triangular, the
cost of a row is a sum over its columns of D_t (target_t - v_t)^2, where the target of a column is
moved by the errors of the columns before it (`column_coder.RowFeedback`). With G factored alike,
and its factor made the identity within blocks of rows, the targets of a block are moved by the
errors of all rows above:

    target_b = w_b + sum_{a<b} U_G[a, b]^T E_a

Input side alone and a scalar quantizer: GPTQ (Frantar et al. 2022), LDLQ (QuIP, Chee et al. 2023).

Feedback spreads the targets, so the best scales are larger than without it: where the kind of
scales allows, a factor is searched, for each group of columns that has a scale of its own when its
turn comes, else for all on a sample of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder, RowFeedback
from reallm_compiler.codecs.contract import Latent
from reallm_compiler.codecs.descent import descend
from reallm_compiler.codecs.feedback_scales import (
    GroupScales,
    largest_scale,
    relative_scales,
    scale_group,
    spread_costs,
)
from reallm_compiler.codecs.feedback_stretch import best_stretch
from reallm_compiler.codecs.numerics.gram import block_unit, damped, factor, full
from reallm_compiler.codecs.rounding import LatentStages, RoundingCodec
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import FeedbackRounding
from reallm_compiler.units import ceil_div


class FeedbackCodec(RoundingCodec[FeedbackRounding]):
    """Rows in blocks, from the first to the last."""

    def metric(self, params: FeedbackRounding, statistics: MatrixStatistics) -> Metric:
        """Plain moments for the input side alone; for both sides, each weighted by the other's.

        Raises:
            CodecError: the statistics have no gradients and both sides are wanted.
        """
        if params.sides == "input":
            return Metric(inputs=full(statistics.inputs))
        if statistics.weighted_inputs is None or statistics.weighted_outputs is None:
            raise CodecError(
                "rounding with `sides: both` needs gradients, and the statistics hold none",
                hint="measure them without `--no-gradients`, or use `sides: input`; embeddings "
                "and heads never have any: give them `rounding: {kind: nearest}` by a rule",
            )
        return Metric(
            inputs=full(statistics.weighted_inputs), outputs=full(statistics.weighted_outputs)
        )

    def encode(self, params: FeedbackRounding, stages: LatentStages) -> ColumnCoder:
        """Chooses the codes of a latent block by block: the coder that holds them."""
        latent, metric, order = stages.scaled(), stages.metric, stages.order
        if metric is None:
            raise CodecError("rounding with feedback needs statistics")
        inputs = damped(metric.inputs, float(params.damping))
        importance = inputs.diagonal()
        if order is not None:  # one importance for all rows: that of the first order
            columns, _ = order.coded(0)
            importance = importance if columns is None else importance[columns]
        coder = stages.coder(latent, importance)
        rows = ceil_div(params.rows, coder.row_step) * coder.row_step
        above = None
        if metric.outputs is not None:
            outputs = damped(metric.outputs, float(params.damping_output))
            above = block_unit(factor(outputs)[0], rows).to(torch.float32)
        bands = _bands(stages, inputs, coder, latent)
        # Without correlations nothing is carried, and scales stay as they are.
        carried = bool(bands[0].feedback.upper.any())
        carried = carried or (above is not None and bool(above.triu(1).any()))
        group = scale_group(stages, coder) if carried else None
        if stages.stretches and carried and group is None:
            stretch = best_stretch(stages, latent, coder, bands[0].feedback, above)
            if stretch != 1:
                latent = stages.scaled(stretch)
                coder = stages.coder(latent, importance)
        _encode(stages, latent, coder, bands, above, rows, group, params.sweeps)
        return coder


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """Rows whose columns have one order.

    Attributes:
        first: the first row.
        last: the row after the last one.
        columns: int64 [q], the columns of the matrix in the coded order; None for their own.
        feedback: along these rows, with scales of one.
        gram: float64 [q, q], the metric in the coded order.
    """

    first: int
    last: int
    columns: Tensor | None
    feedback: RowFeedback
    gram: Tensor


def _bands(stages: LatentStages, inputs: Tensor, coder: ColumnCoder, latent: Latent) -> list[_Band]:
    """The bands of a latent, each with its factor of the metric."""
    bands: list[_Band] = []
    first, count = 0, len(latent.values)
    ones = torch.ones(1, len(inputs), device=latent.values.device)
    while first < count:
        last: int | None = None
        columns = coder.order
        if stages.order is not None:
            permuted, last = stages.order.coded(first)
            if permuted is not None:
                columns = permuted if columns is None else permuted[columns]
        own = inputs if columns is None else inputs[columns][:, columns]
        upper, importance = factor(own)
        if coder.step > 1:
            upper = block_unit(upper, coder.step)
        feedback = RowFeedback(
            upper=upper.to(torch.float32).triu_(1),
            importance=importance.to(torch.float32),
            scales=ones,
        )
        end = last or count
        bands.append(_Band(first=first, last=end, columns=columns, feedback=feedback, gram=own))
        first = last or count
    return bands


def _encode(
    stages: LatentStages,
    latent: Latent,
    coder: ColumnCoder,
    bands: list[_Band],
    above: Tensor | None,
    rows: int,
    group: int | None,
    sweeps: int,
) -> None:
    """Codes all rows of a latent [p, q].

    Args:
        stages: of the latent.
        latent: the latent.
        coder: of it.
        bands: of it.
        above: float32 [p, p], U_G with blocks of the identity; None without an output side.
        rows: rows of a block.
        group: columns of a group whose scales are chosen anew; None where they are not.
        sweeps: of coordinate descent afterwards, without an output side.
    """
    p, q = latent.values.shape
    errors = latent.values.new_empty(p, q, dtype=torch.float32) if above is not None else None
    largest = largest_scale(latent)
    for band in bands:
        spread = None if group is None else spread_costs(band.feedback, latent.generator)
        step = rows if above is not None else band.last - band.first
        for first in range(band.first, band.last, step):
            span = slice(first, min(first + step, band.last))
            values = latent.values[span]
            if coder.order is not None:
                values = values[:, coder.order]
            values = values.to(torch.float32)
            scales, zeros = relative_scales(latent.scales, span, coder.order, values, largest)
            feedback = replace(band.feedback, scales=scales, zeros=zeros)
            if group is not None and spread is not None:
                again = GroupScales(stages, coder, span, largest, latent, feedback, spread)
                feedback = replace(feedback, rescale=again, group=group)
            if above is None or errors is None:
                decoded = coder.quantize_rows(values, span, feedback)
                if sweeps:
                    wanted = values * scales if zeros is None else values * scales + zeros
                    if group is not None:  # scales were chosen anew
                        now = relative_scales(latent.scales, span, coder.order, values, largest)
                        scales, zeros = now
                    descend(coder, wanted, decoded, span, scales, zeros, band.gram, sweeps)
                continue
            wanted = values * scales if zeros is None else values * scales + zeros
            if first:  # errors stand in the order of the matrix, which bands do not share
                moved = above[:first, span].t() @ errors[:first]
                moved = moved if band.columns is None else moved[:, band.columns]
                values = torch.where(scales > 0, values + moved / scales, 0.0)
            error = wanted - coder.quantize_rows(values, span, feedback)
            if band.columns is None:
                errors[span] = error
            else:
                errors[span, band.columns] = error
