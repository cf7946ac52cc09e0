"""Rounding with feedback: errors are carried into what is not coded yet.

The error E of a latent costs tr(G E H E^T). With H = U diag(D) U^T, U unit upper triangular, the
cost of a row is a sum over its columns of D_t (target_t - v_t)^2, where the target of a column is
moved by the errors of the columns before it (`column_coder.RowFeedback`). With G factored alike, and
its factor made the identity within blocks of rows, the targets of a block are moved by the errors
of all rows above:

    target_b = w_b + sum_{a<b} U_G[a, b]^T E_a

Input side alone and a scalar quantizer: GPTQ (Frantar et al. 2022), LDLQ (QuIP, Chee et al. 2023).

Feedback spreads the targets, so the best scales are larger than without it: where the kind of
scales allows, a factor is searched on a sample of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder, RowFeedback
from reallm_compiler.codecs.contract import Latent
from reallm_compiler.codecs.numerics.gram import block_unit, damped, factor, full
from reallm_compiler.codecs.rounding import LatentStages, Metric, RoundingCodec
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import FeedbackRounding
from reallm_compiler.units import ceil_div

SAMPLE = 16
"""Rows that a factor is tried on: at least so many, and one in `SAMPLE_SHARE`."""

SAMPLE_SHARE = 64

PROBES = 16
"""Random vectors by which the norm of a large matrix is estimated."""

SAMPLE_COLUMNS = 128
"""Columns that a factor is tried on, where the first ones can be coded without the rest."""


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
        if order is not None:  # one importance for all rows: that of the first order
            columns, _ = order.coded(0)
            importance = inputs.diagonal()[columns]
        else:
            importance = inputs.diagonal()
        coder = stages.coder(latent, importance)
        rows = ceil_div(params.rows, coder.row_step) * coder.row_step
        above = None
        if metric.outputs is not None:
            outputs = damped(metric.outputs, float(params.damping_output))
            above = block_unit(factor(outputs)[0], rows).to(torch.float32)
        bands = _bands(stages, inputs, coder, latent)
        if stages.stretches:
            stretch = _stretch(stages, latent, coder, bands[0].feedback, above)
            if stretch != 1:
                latent = stages.scaled(stretch)
                coder = stages.coder(latent, importance)
        _encode(stages, latent, coder, bands, above, rows)
        return coder


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """Rows whose columns have one order.

    Attributes:
        first: the first row.
        last: the row after the last one.
        columns: int64 [q], the columns of the matrix in the coded order; None for their own.
        feedback: along these rows, with scales of one.
    """

    first: int
    last: int
    columns: Tensor | None
    feedback: RowFeedback


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
            columns = permuted if columns is None else permuted[columns]
        own = inputs if columns is None else inputs[columns][:, columns]
        upper, importance = factor(own)
        if coder.step > 1:
            upper = block_unit(upper, coder.step)
        feedback = RowFeedback(
            upper=upper.triu(1).to(torch.float32),
            importance=importance.to(torch.float32),
            scales=ones,
        )
        bands.append(_Band(first=first, last=last or count, columns=columns, feedback=feedback))
        first = last or count
    return bands


def _encode(
    stages: LatentStages,
    latent: Latent,
    coder: ColumnCoder,
    bands: list[_Band],
    above: Tensor | None,
    rows: int,
) -> None:
    """Codes all rows of a latent [p, q].

    Args:
        stages: of the latent.
        latent: the latent.
        coder: of it.
        bands: of it.
        above: float32 [p, p], U_G with blocks of the identity; None without an output side.
        rows: rows of a block.
    """
    p, q = latent.values.shape
    errors = latent.values.new_empty(p, q, dtype=torch.float32) if above is not None else None
    largest, group = _largest(latent), _group(stages, coder)
    for band in bands:
        step = rows if above is not None else band.last - band.first
        for first in range(band.first, band.last, step):
            span = slice(first, min(first + step, band.last))
            values = latent.values[span]
            if coder.order is not None:
                values = values[:, coder.order]
            values = values.to(torch.float32)
            scales, zeros = _scales(latent.scales, span, coder.order, values, largest)
            feedback = replace(
                band.feedback,
                scales=scales,
                zeros=zeros,
                rescale=None if group is None else _rescaler(stages, span, largest),
                group=group or 1,
            )
            if above is None or errors is None:
                coder.quantize_rows(values, span, feedback)
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


def _largest(latent: Latent) -> float:
    """The largest scale, in terms of which errors are carried; as it is before rows are coded."""
    return 1.0 if latent.scales is None else latent.scales.largest


def _group(stages: LatentStages, coder: ColumnCoder) -> int | None:
    """Columns of a group whose scales are chosen anew; None where they are not."""
    group = stages.group if coder.order is None else None
    return None if group is None or group % coder.step else group


def _rescaler(
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


def _scales(
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


def _stretch(
    stages: LatentStages,
    latent: Latent,
    coder: ColumnCoder,
    feedback: RowFeedback,
    above: Tensor | None,
) -> float:
    """The factor of the scales that makes the cost of a sample of rows least.

    What rows above would add to the targets of the sample is drawn at random, of the variance that
    their errors have. Without correlations nothing is carried, and scales stay as they are.
    """
    factors = stages.stretches
    if not (bool(feedback.upper.any()) or (above is not None and bool(above.triu(1).any()))):
        return factors[0]
    p, q = latent.values.shape
    count = min(p, max(SAMPLE, p // SAMPLE_SHARE) // coder.row_step * coder.row_step)
    count = max(count, min(p, coder.row_step))
    first = (p - count) // 2 // coder.row_step * coder.row_step
    span, stride = slice(first, first + count), 1
    if coder.trials > 1:  # rows from the whole matrix, as many as find room for all factors at once
        count = max(min(p, SAMPLE), min(p // coder.trials, SAMPLE_COLUMNS))
        span, stride = slice(0, p), max(p // count, 1)
    largest, group = _largest(latent), _group(stages, coder)
    values = latent.values[span][::stride][:count].to(torch.float32)
    if coder.order is not None:
        values = values[:, coder.order]
    scales, zeros = _scales(latent.scales, span, coder.order, values, largest)
    scales = scales[::stride][:count]
    zeros = None if zeros is None else zeros[::stride][:count]
    generator = torch.Generator().manual_seed(latent.generator.initial_seed())
    moved = torch.randn(count, q, generator=generator).to(values.device)
    upper, importance = feedback.upper, feedback.importance
    if coder.trials > 1:
        q = min(q, max(SAMPLE_COLUMNS // (group or 1), 1) * (group or 1))
        values, scales, moved = values[:, :q], scales[:, :q], moved[:, :q]
        zeros = None if zeros is None else zeros[:, :q]
        upper, importance = upper[:q, :q], importance[:q]
    wanted = values * scales if zeros is None else values * scales + zeros

    def costs(tried: tuple[float, ...], moved: Tensor | float) -> tuple[list[float], float]:
        """What the sample costs with each factor, and the mean square of its errors."""
        n = len(tried)
        rows = slice(first := min(span.start, p - n * count), first + n * count)
        times: float | Tensor = tried[0]
        given = scales
        if n > 1:
            times = torch.tensor(tried, device=values.device).repeat_interleave(count)[:, None]
            given = scales if len(scales) == 1 else scales.repeat(n, 1)
        shift = None if zeros is None else zeros if len(zeros) == 1 else zeros.repeat(n, 1)
        if shift is not None and latent.unit_range:  # about the middle of the range
            shift = shift + given * ((1 - times) / 2)
        given = given * times
        carried = replace(
            feedback,
            upper=upper,
            importance=importance,
            scales=given,
            zeros=shift,
            rescale=None if group is None else _rescaler(stages, None, largest, times),
            group=group or 1,
        )
        targets = (wanted + moved).repeat(n, 1)
        centred = targets if shift is None else targets - shift
        normalised = torch.where(given > 0, centred / given, 0.0)
        error = targets - coder.quantize_rows(normalised, rows, carried)
        total = (error + error @ upper).square() @ importance
        return total.view(n, count).double().sum(1).tolist(), float(error.square().mean())

    noise: Tensor | float = 0.0
    if above is not None:
        # |U_G^-1 - I|^2 by its effect on random signs: what errors of rows above add to a row.
        signs = torch.randint(0, 2, (p, PROBES), generator=generator).to(above) * 2 - 1
        solved = torch.linalg.solve_triangular(above.t(), signs, upper=False)
        share = float((solved - signs).square().mean())
        noise = moved * (share * costs(factors[1:2], 0.0)[1]) ** 0.5
    together = max(min(coder.trials, p // count), 1)
    best, least = factors[0], float("inf")
    for start in range(0, len(factors), together):
        tried = factors[start : start + together]
        for stretch, found in zip(tried, costs(tried, noise)[0], strict=True):
            if found >= least:
                return best
            best, least = stretch, found
    return best
