"""The factor of the scales that rounding with feedback codes best with, found on some rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder, RowFeedback
from reallm_compiler.codecs.contract import Latent
from reallm_compiler.codecs.feedback_scales import (
    largest_scale,
    relative_scales,
)
from reallm_compiler.codecs.rounding import LatentStages

SAMPLE = 16
"""Rows that a factor is tried on: at least so many, and one in `SAMPLE_SHARE`."""

SAMPLE_SHARE = 64

PROBES = 16
"""Random vectors by which the norm of a large matrix is estimated."""

SAMPLE_COLUMNS = 128
"""Columns that a factor is tried on, where the first ones can be coded without the rest."""


def best_stretch(
    stages: LatentStages,
    latent: Latent,
    coder: ColumnCoder,
    feedback: RowFeedback,
    above: Tensor | None,
) -> float:
    """The factor of the scales that makes the cost of a sample of rows least.

    What rows above would add to the targets of the sample is drawn at random, of the variance that
    their errors have.
    """
    factors = stages.stretches
    sample = _Sample(latent, coder, feedback)
    noise: Tensor | float = 0.0
    if above is not None:
        # |U_G^-1 - I|^2 by its effect on random signs: what errors of rows above add to a row.
        signs = torch.randint(0, 2, (len(above), PROBES), generator=sample.generator)
        signs = signs.to(above) * 2 - 1
        solved = torch.linalg.solve_triangular(above.t(), signs, upper=False)
        share = float((solved - signs).square().mean())
        noise = sample.noise * (share * sample.costs(factors[1:2], 0.0)[1]) ** 0.5
    best, least = factors[0], float("inf")
    for start in range(0, len(factors), sample.together):
        tried = factors[start : start + sample.together]
        for stretch, found in zip(tried, sample.costs(tried, noise)[0], strict=True):
            if found >= least:
                return best
            best, least = stretch, found
    return best


class _Sample:
    """Some rows of a latent, and for some coders some of their columns.

    Args:
        latent: the latent.
        coder: of it.
        feedback: along its first rows.

    Attributes:
        together: factors that are tried at once.
        generator: of random numbers for this latent.
        noise: normal values of the shape of the sample.
    """

    def __init__(self, latent: Latent, coder: ColumnCoder, feedback: RowFeedback) -> None:
        self._latent, self._coder = latent, coder
        p, q = latent.values.shape
        count = min(p, max(SAMPLE, p // SAMPLE_SHARE) // coder.row_step * coder.row_step)
        count = max(count, min(p, coder.row_step))
        first = (p - count) // 2 // coder.row_step * coder.row_step
        span, stride = slice(first, first + count), 1
        if coder.trials > 1:  # rows from the whole matrix, as many as fit for all factors at once
            count = max(min(p, SAMPLE), min(p // coder.trials, SAMPLE_COLUMNS))
            span, stride = slice(0, p), max(p // count, 1)
        self._first, self._count, self._rows = span.start, count, p
        values = latent.values[span][::stride][:count].to(torch.float32)
        if coder.order is not None:
            values = values[:, coder.order]
        scales, zeros = relative_scales(
            latent.scales, span, coder.order, values, largest_scale(latent)
        )
        scales = scales[::stride][:count]
        zeros = None if zeros is None else zeros[::stride][:count]
        self.generator = torch.Generator().manual_seed(latent.generator.initial_seed())
        noise = torch.randn(count, q, generator=self.generator).to(values.device)
        if coder.trials > 1:
            q = min(q, SAMPLE_COLUMNS)
            values, scales, noise = values[:, :q], scales[:, :q], noise[:, :q]
            zeros = None if zeros is None else zeros[:, :q]
            feedback = replace(
                feedback, upper=feedback.upper[:q, :q], importance=feedback.importance[:q]
            )
        self._feedback, self._scales, self._zeros, self.noise = feedback, scales, zeros, noise
        self._wanted = values * scales if zeros is None else values * scales + zeros
        self.together = max(min(coder.trials, p // count), 1)

    def costs(self, tried: tuple[float, ...], moved: Tensor | float) -> tuple[list[float], float]:
        """What the sample costs with each factor, and the mean square of its errors.

        Args:
            tried: the factors, `together` at most.
            moved: what is added to the targets.
        """
        n, count, scales, zeros = len(tried), self._count, self._scales, self._zeros
        first = min(self._first, self._rows - n * count)
        times: float | Tensor = tried[0]
        given = scales
        if n > 1:
            times = torch.tensor(tried, device=scales.device).repeat_interleave(count)[:, None]
            given = scales if len(scales) == 1 else scales.repeat(n, 1)
        shift = None if zeros is None else zeros if len(zeros) == 1 else zeros.repeat(n, 1)
        if shift is not None and self._latent.range == "unit":  # about the middle of the range
            shift = shift + given * ((1 - times) / 2)
        elif shift is not None:  # integer zero points: about zero
            shift = shift * times
        given = given * times
        carried = replace(self._feedback, scales=given, zeros=shift)
        targets = (self._wanted + moved).repeat(n, 1)
        centred = targets if shift is None else targets - shift
        normalized = torch.where(given > 0, centred / given, 0.0)
        rows = slice(first, first + n * count)
        error = targets - self._coder.quantize_rows(normalized, rows, carried)
        total = (error + error @ carried.upper).square() @ carried.importance
        return total.view(n, count).double().sum(1).tolist(), float(error.square().mean())
