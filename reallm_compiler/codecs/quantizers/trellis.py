"""Trellis-coded quantizer: rows as paths through a bit-shift trellis (QTIP; Marcellin and Fischer).

A row is one sequence of codes c_0, c_1, ... with k_t bits each. The state is the last `state_bits`
bits of the codes written one after the other, the newest on top, zeros before the first,

    s_t = s_{t-1} >> k_t | c_t << (state_bits - k_t),      decoded value = table[s_t]

so that a value can be looked up anywhere in a row without decoding what is before it. The codes of
a row are those of the path of least error (`numerics.list_search`).

With a fractional rate the columns whose errors cost most have codes of one bit more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from reallm_compiler.codecs.column_coder import ColumnCoder, RowFeedback
from reallm_compiler.codecs.contract import Latent, QuantizerCodec, RowDecoder, Shape
from reallm_compiler.codecs.numerics.codebooks import (
    codebook_table,
    read_codebook,
    store_codebook,
)
from reallm_compiler.codecs.numerics.list_search import SearchProblem
from reallm_compiler.codecs.quantizers.trellis_search import Searcher, states_of
from reallm_compiler.codecs.quantizers.trellis_stream import HighRate, RowStream
from reallm_compiler.codecs.quantizers.trellis_table import (
    COMPUTED_DEVIATION,
    Segments,
    computed_entries,
    computed_table,
    fit_table,
    sample,
)
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.windows import WindowValues, split
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import Range, TrellisQuantizer
from reallm_compiler.storage.trellis import high_rate_columns

ROWS = 256
"""Rows whose energy is added up, or whose codes are chosen, in one step."""

LEAST_RATIO = 1 / 64
"""Columns that differ by more have no common table, whatever their scale."""


def choose_high_rate(
    params: TrellisQuantizer,
    values: Tensor,
    scales: ScaleField | None,
    importance: Tensor | None = None,
) -> HighRate | None:
    """The columns with most energy in weight space, as many as the size law says.

    Their scale is their root mean square in terms of that of all other columns, so that one table
    fits both.

    Args:
        params: the quantizer.
        values: the normalized latent [p, q].
        scales: of the latent.
        importance: float64 [q], what the square of an error in each column costs; None for ones.

    Returns:
        None where all columns have the same width.
    """
    if len(params.widths) == 1:
        return None
    p, q = values.shape
    energy = torch.zeros(q, dtype=torch.float64, device=values.device)
    for first in range(0, p, ROWS):
        last = min(first + ROWS, p)
        squares = values[first:last].square()
        if scales is not None:
            squares *= scales.rows(first, last).div_(scales.largest).square_()
        energy += squares.sum(0, dtype=torch.float64)
    cost = energy if importance is None else energy * importance.to(energy.device)
    mask = torch.zeros(q, dtype=torch.bool, device=values.device)
    count = high_rate_columns(params, q)
    mask[cost.sort(descending=True, stable=True).indices[:count]] = True
    ratio = (energy[mask].mean() / energy[~mask].mean()).sqrt() if not mask.all() else energy[0]
    usable = LEAST_RATIO < float(ratio) < 1 / LEAST_RATIO
    scale = ratio if usable and not mask.all() else torch.ones_like(ratio)
    return HighRate(mask=mask, scale=scale.to(torch.float32).view(1))


class TrellisCoder(ColumnCoder):
    """Codes the rows of a latent as paths, in an order that spreads its high-rate columns.

    A block of columns is searched by itself, from the states in which the last block ended.

    Args:
        params: the quantizer.
        latent: the latent.
        table: float32 [2^state_bits] as stored.
        importance: float64 [q], what the square of an error in each column costs; None for ones.
    """

    def __init__(
        self,
        params: TrellisQuantizer,
        latent: Latent,
        table: Tensor,
        importance: Tensor | None = None,
    ) -> None:
        values = latent.values
        self._params = params
        self._table = table
        self._high_rate = choose_high_rate(params, values, latent.scales, importance)
        self._stream = RowStream(params, values.shape[1], self._high_rate)
        self._inner = torch.ones(1, values.shape[1], device=values.device)  # in the coded order
        if self._stream.order is not None and self._high_rate is not None:
            self.order = self._stream.order.to(values.device)
            self._inner = self._high_rate.factors()[None, self.order]
        self._scales = latent.scales
        if self._scales is not None and self._scales.per in ("tensor", "row"):
            self._scales = None  # a row's codes do not depend on its scale
        self._codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
        self._states = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        self._searchers: dict[tuple[int, int], Searcher] = {}  # by first and last column
        self._with_feedback: Searcher | None = None

    def quantize(
        self, block: Tensor, columns: slice, *, rows: slice = slice(None), decode: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """uint8 [n, m]: the paths of least error from where the last block ended; their values."""
        first, last = int(columns.start or 0), int(columns.start or 0) + block.shape[1]
        top, bottom, _ = rows.indices(len(self._codes))
        searcher = self._searchers.get((first, last))
        if searcher is None:
            searcher = Searcher(self._problem(slice(first, last)))
            self._searchers[first, last] = searcher
        whole = (first, last) == (0, self._codes.shape[1])
        start = None if first == 0 else self._states[top:bottom]
        for one in range(top, bottom, ROWS):
            end = min(one + ROWS, bottom)
            scales = self._factors(one, end)[:, first:last]
            values = block[one - top : end - top].to(torch.float32) * scales
            begin = None if start is None else start[one - top : end - top]
            scales = scales * self._inner[:, first:last]
            self._codes[one:end, first:last] = searcher.codes(values, scales, begin)
        codes = self._codes[top:bottom, first:last]
        if whole and not decode:
            return codes, None
        if not block.numel():
            return codes, block
        widths = self._stream.widths[first:last]
        states = states_of(codes, widths, self._params.state_bits, start)
        self._states[top:bottom] = states[:, -1].to(torch.int64)
        if not decode:
            return codes, None
        return codes, (self._table[states] * self._inner[:, first:last]).to(block.dtype)

    def quantize_rows(self, values: Tensor, rows: slice, feedback: RowFeedback) -> Tensor:
        """Codes whole rows by a search that carries the errors of each path."""
        searcher = self._with_feedback
        if searcher is None or searcher.problem.feedback is not feedback.upper:
            columns = slice(0, values.shape[1])
            problem = self._problem(columns, feedback.upper, feedback.importance)
            searcher = self._with_feedback = Searcher(problem)
        codes = searcher.codes(values * feedback.scales, feedback.scales * self._inner)
        self._codes[rows] = codes
        states = states_of(codes, self._stream.widths, self._params.state_bits)
        decoded = self._table[states] * self._inner * feedback.scales
        return decoded if feedback.zeros is None else decoded + feedback.zeros

    def sections(self) -> Sections:
        """The streams of the rows, and which columns have the higher rate."""
        high_rate = {} if self._high_rate is None else self._high_rate.sections()
        return {"codes": self._stream.pack(self._codes), **high_rate}

    def _problem(
        self, columns: slice, feedback: Tensor | None = None, importance: Tensor | None = None
    ) -> SearchProblem:
        widths = self._stream.widths[columns]
        if importance is None:
            importance = torch.ones(len(widths), device=self._table.device)
        return SearchProblem(
            table=self._table,
            state_bits=self._params.state_bits,
            widths=widths,
            importance=importance,
            feedback=feedback,
            paths=min(self._params.paths, len(self._table)),
        )

    def _factors(self, first: int, last: int) -> Tensor:
        """float32 [n, q] or [1, q]: scales of rows, in terms of the largest, in the coded order."""
        if self._scales is None:
            return torch.ones(1, self._codes.shape[1], device=self._codes.device)
        factors = self._scales.factors(first, last, self._scales.largest)
        return factors if self.order is None else factors[:, self.order]


class TrellisDecoder(RowDecoder):
    """Rows of trellis codes of a latent [p, q]; each can be decoded by itself."""

    def __init__(
        self,
        params: TrellisQuantizer,
        shape: tuple[int, int],
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self._codes = sections["codes"]
        self._table = stored_table(params, sections, self._codes, dtype)
        high_rate = HighRate.read(sections, shape[1])
        self._stream = RowStream(params, shape[1], high_rate)
        self._factors = None if high_rate is None else high_rate.factors().to(dtype)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalized latent."""
        states = self._stream.states(self._codes[first:last])
        values = torch.index_select(self._table, 0, states.view(-1)).view(states.shape)
        return values if self._factors is None else values.mul_(self._factors)


def stored_table(
    params: TrellisQuantizer, sections: Mapping[str, Tensor], like: Tensor, dtype: torch.dtype
) -> Tensor:
    """The table [2^state_bits] that a reader sees, on the device of `like`."""
    if params.learns_tables:
        return read_codebook(sections, like, dtype)
    return computed_table(params.state_bits).to(like.device, dtype)


class TrellisCodec(QuantizerCodec[TrellisQuantizer]):
    """Rows as paths through a trellis."""

    def fit(self, params: TrellisQuantizer, latent: Latent) -> Sections:
        """The table of one latent; nothing where it is computed."""
        if not params.learns_tables:
            return {}
        return self._fit(params, [_sampled(latent, 1)], latent.generator)

    def fit_group(
        self,
        params: TrellisQuantizer,
        latents: Iterable[Latent],
        count: int,
        generator: torch.Generator,
    ) -> Sections:
        """The common table of several latents.

        Each is coded at its own rate and counts by its number of weights.
        """
        pieces: list[Segments] = []
        for latent in latents:
            pieces.append(_sampled(latent, count))
            del latent  # before the next one is made
        if not pieces:
            raise CodecError("a table needs at least one matrix")
        return self._fit(params, pieces, generator)

    def _fit(
        self, params: TrellisQuantizer, pieces: list[Segments], generator: torch.Generator
    ) -> Sections:
        return store_codebook(params.dtype, fit_table(params, pieces, generator))

    def coder(
        self,
        params: TrellisQuantizer,
        latent: Latent,
        tables: Mapping[str, Tensor],
        importance: Tensor | None = None,
    ) -> TrellisCoder:
        """By the table as stored."""
        table = stored_table(params, tables, latent.values, torch.float32)
        return TrellisCoder(params, latent, table, importance)

    def decoder(
        self,
        params: TrellisQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        range: Range,
    ) -> TrellisDecoder:
        """Values by their states."""
        return TrellisDecoder(params, shape, sections, dtype)

    def window_values(
        self,
        params: TrellisQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        range: Range,
    ) -> WindowValues:
        """The table, and which columns lie where in the streams."""
        if params.learns_tables:
            table, unit = codebook_table(sections)
        else:
            planes = split(computed_entries(params.state_bits))
            table, unit = torch.stack(planes), 1 / COMPUTED_DEVIATION
        high_rate = HighRate.read(sections, shape[1])
        return WindowValues(
            table=table[..., None],
            unit=unit,
            order=RowStream(params, shape[1], high_rate).order,
            factors=None if high_rate is None else high_rate.factors(),
        )


def _sampled(latent: Latent, sharers: int) -> Segments:
    params = cast(TrellisQuantizer, latent.quantizer)
    high_rate = choose_high_rate(params, latent.values, latent.scales)
    return sample(params, latent.values, latent.scales, high_rate, sharers, latent.generator)
