"""Tables of the trellis quantizer: learned from samples of the weights, or computed.

A learned table starts as quantiles of the values in random order and is moved to the means of the
values that meet each state, as in k-means. Errors are measured in weight space: a value that will
be multiplied by a scale s counts s^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.assignment import sums_by_codeword
from reallm_compiler.codecs.numerics.list_search import SearchProblem
from reallm_compiler.codecs.numerics.numbers import unit
from reallm_compiler.codecs.quantizers.trellis_search import Searcher
from reallm_compiler.codecs.quantizers.trellis_stream import HighRate, RowStream
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.trellis import (
    LEARNING_PATHS,
    SEGMENT,
    column_widths,
    sample_segments,
)

FEWEST = 4
"""An entry that met fewer values than this stays where it is."""

MULTIPLIER = 0x83DCD12D
"""What a state is multiplied by for a computed table, modulo 2^32."""


COMPUTED_MEAN = 510
"""The mean of a sum of four bytes."""

COMPUTED_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)
"""The deviation of such a sum."""


def computed_table(state_bits: int) -> Tensor:
    """float64 [2^state_bits]: a nearly normal value for each state, of mean 0 and deviation 1.

    The four bytes of state x `MULTIPLIER` (modulo 2^32) are added up, as in the computed codes of
    QTIP: (sum - 510) / sqrt(4 (256^2 - 1) / 12).
    """
    return computed_entries(state_bits).to(torch.float64) / COMPUTED_DEVIATION


def computed_entries(state_bits: int) -> Tensor:
    """int64 [2^state_bits]: the sums less their mean."""
    state = torch.arange(2**state_bits, dtype=torch.int64)
    product = state * MULTIPLIER % 2**32
    total = torch.stack([(product >> shift) % 256 for shift in (0, 8, 16, 24)]).sum(0)
    return total - COMPUTED_MEAN


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """Pieces of rows, with columns in the coded order.

    Attributes:
        widths: bits of the codes, column by column.
        values: float32 [n, SEGMENT], normalized, padded with zeros.
        scales: of the same shape; 0 for padding.
        shares: float32 [n], what a segment's squared errors count beside those of other latents.
    """

    widths: tuple[int, ...]
    values: Tensor
    scales: Tensor
    shares: Tensor

    @property
    def importance(self) -> Tensor:
        """float32 [n, SEGMENT]: what the square of each value's error counts."""
        return self.scales.square() * self.shares[:, None]

    @staticmethod
    def joined(parts: Sequence[Segments]) -> list[Segments]:
        """The segments of all parts, those of the same widths as one, in the order of the first."""
        alike: dict[tuple[int, ...], list[Segments]] = {}
        for part in parts:
            alike.setdefault(part.widths, []).append(part)
        return [
            Segments(
                widths=widths,
                values=torch.cat([part.values for part in same]),
                scales=torch.cat([part.scales for part in same]),
                shares=torch.cat([part.shares for part in same]),
            )
            for widths, same in alike.items()
        ]


def sample(
    params: TrellisQuantizer,
    values: Tensor,
    scales: ScaleField | None,
    high_rate: HighRate | None,
    sharers: int,
    generator: torch.Generator,
) -> Segments:
    """Random segments of a latent, for a table that `sharers` latents share.

    Args:
        params: the quantizer.
        values: [p, q], normalized.
        scales: of the latent.
        high_rate: its columns with codes of one bit more.
        sharers: number of latents.
        generator: on the CPU.

    Returns:
        segments whose shares are relative to the latent's energy, so that a matrix counts by its
        number of weights.
    """
    p, q = values.shape
    count = sample_segments(params, (p, q), sharers)
    row = torch.randint(p, (count, 1), generator=generator).to(values.device)
    column, padding = _columns(params, q, high_rate, count, generator)
    column, padding = column.to(values.device), padding.to(values.device)
    if scales is None:
        factor = torch.ones_like(column, dtype=torch.float32)
        mean_square = float(values.square().mean(dtype=torch.float64))
    else:
        one = unit(scales.scale)
        factor = (scales.at(row.expand_as(column), column) / one).to(torch.float32)
        mean_square = scales.mean_square(one)
    own = values[row, column].to(torch.float32)
    if high_rate is not None:
        inner = high_rate.factors()[column]
        own, factor = own / inner, factor * inner
    used = int((~padding).sum()) or 1
    share = p * q / used / (mean_square or 1.0)
    return Segments(
        widths=column_widths(params, SEGMENT),
        values=own.masked_fill(padding, 0),
        scales=factor.masked_fill(padding, 0),
        shares=torch.full((count,), share, device=values.device),
    )


def _columns(
    params: TrellisQuantizer,
    columns: int,
    high_rate: HighRate | None,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Columns int64 [count, SEGMENT] of segments in the coded order, and where they are padding.

    Segments are pieces of the rows as they are coded. Where no piece has the common pattern of
    widths, as in short rows, they are put together from columns of each width.
    """
    pattern = column_widths(params, SEGMENT)
    widths = column_widths(params, columns)
    starts = [
        first
        for first in range(columns - SEGMENT + 1)
        if widths[first : first + SEGMENT] == pattern
    ]
    if starts:
        chosen = torch.randint(len(starts), (count, 1), generator=generator)
        slots = torch.tensor(starts)[chosen] + torch.arange(SEGMENT)
        order = RowStream(params, columns, high_rate).order
        return slots if order is None else order[slots], torch.zeros_like(slots, dtype=torch.bool)
    column = torch.zeros(count, SEGMENT, dtype=torch.int64)
    padding = torch.ones(count, SEGMENT, dtype=torch.bool)
    wide = torch.zeros(columns, dtype=torch.bool) if high_rate is None else high_rate.mask.cpu()
    for kind in (False, True):
        slots = ((torch.tensor(pattern) > params.widths[0]) == kind).nonzero()[:, 0]
        own = (wide == kind).nonzero()[:, 0]
        length = min(len(slots), len(own))
        if not length:  # such as of a single column that has the higher rate
            continue
        first = torch.randint(len(own) - length + 1, (count, 1), generator=generator)
        column[:, slots[:length]] = own[first + torch.arange(length)]
        padding[:, slots[:length]] = False
    return column, padding


def fit_table(
    params: TrellisQuantizer, pieces: Sequence[Segments], generator: torch.Generator
) -> Tensor:
    """A table float32 [2^state_bits] for segments, each coded at the rate of its widths."""
    size = 2**params.state_bits
    parts = Segments.joined(pieces)
    # Only ratios count: the largest weight of an error is made 1, far from any overflow.
    largest = torch.stack([part.importance.max() for part in parts]).max()
    importance = [part.importance / (largest or 1.0) for part in parts]
    known = torch.cat([p.values[weight > 0] for p, weight in zip(parts, importance, strict=True)])
    if not len(known):
        return known.new_zeros(size)
    ordered = known.sort().values
    quantile = (torch.arange(size) * 2 + 1) * len(ordered) // (2 * size)
    order = torch.randperm(size, generator=generator)
    table = ordered[quantile[order].to(ordered.device)]
    weighted = [
        torch.stack([part.values * weight, weight, (weight > 0).float()], dim=-1).view(-1, 3)
        for part, weight in zip(parts, importance, strict=True)
    ]
    for _ in range(params.iterations):
        sums = [
            sums_by_codeword(rows, _states(params, table, part), size)
            for part, rows in zip(parts, weighted, strict=True)
        ]
        total = torch.stack(sums).sum(0)  # [size, 3]
        mean = (total[:, 0] / total[:, 1].clamp(min=1e-300)).to(table.dtype)
        table = torch.where(total[:, 2] >= FEWEST, mean, table)
    return table


def _states(params: TrellisQuantizer, table: Tensor, part: Segments) -> Tensor:
    """int64 [n SEGMENT]: the states of segments whose errors, at their scales, are least."""
    problem = SearchProblem(
        table=table,
        state_bits=params.state_bits,
        widths=part.widths,
        importance=torch.ones(SEGMENT, device=table.device),
        feedback=None,
        paths=min(params.paths, LEARNING_PATHS, len(table)),
    )
    states = Searcher(problem).states(part.values * part.scales, part.scales)
    return states.view(-1).to(torch.int64)
