"""Trellis-coded quantizer: rows as paths through a bit-shift trellis (QTIP; Marcellin and Fischer).

A row is one sequence of codes c_0, c_1, ... with k_t bits each. The state is the last `memory` bits
of the codes written one after the other, zeros before the first,

    s_t = (s_{t-1} 2^{k_t} + c_t) mod 2^memory,   decoded value = table[s_t]

so that a value can be looked up at any place of a row without decoding what is before it. The
codes of a row are those of the path of least error (`trellis_search`). The table starts as
quantiles of the values in random order and is moved to the means of the values that meet each
state, as in k-means. Errors are measured in weight space: a value that will be multiplied by a
scale s counts s^2.

With a fractional rate the columns with most energy have codes of one bit more and a table of
their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import ColumnCoder, Latent, QuantizerCodec, RowDecoder, Shape
from reallm_compiler.codecs.numerics.assignment import sums_by_codeword
from reallm_compiler.codecs.numerics.numbers import stored, unit
from reallm_compiler.codecs.numerics.packing import CODES_PER_GROUP, pack, unpack
from reallm_compiler.codecs.quantizers.trellis_search import best_codes, states_of
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.base import DTYPES
from reallm_compiler.storage.trellis import SEGMENT, sample_segments, wide_columns
from reallm_compiler.units import bytes_of_bits

FEWEST = 4
"""An entry that met fewer values than this stays where it is."""

ROWS = 256
"""Rows that are coded in one step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """Pieces of sequences from columns of one width.

    Attributes:
        values: [n, SEGMENT], padded with zeros.
        weights: of the same shape; 0 for padding.
    """

    values: Tensor
    weights: Tensor

    @staticmethod
    def joined(parts: Sequence[Segments]) -> Segments:
        """The segments of all parts."""
        return Segments(
            values=torch.cat([part.values for part in parts]),
            weights=torch.cat([part.weights for part in parts]),
        )


class TrellisCoder(ColumnCoder):
    """Codes the rows of a latent as paths, from left to right.

    A block of columns is searched by itself, from the states in which the last block ended.

    Args:
        params: the quantizer.
        latent: the latent.
        tables: [widths, 2^memory] as stored, in the precision of the work.
    """

    def __init__(self, params: TrellisQuantizer, latent: Latent, tables: Tensor) -> None:
        values = latent.values
        self._params = params
        self._scales = latent.scales
        self._tables = tables
        self._mask = choose_wide(params, values, latent.scales)
        self._widths = [params.widths[wide] for wide in self._mask.tolist()]
        self._codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)

    def quantize(
        self, block: Tensor, columns: slice, *, decode: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """uint8 [p, n]: the path of least error from where the last block ended, and its values."""
        p, n = block.shape
        first = int(columns.start or 0)
        span = slice(first, first + n)
        widths = self._widths[span]
        start = None if first == 0 else self._states(first - 1, first)[:, -1]
        for top in range(0, p, ROWS):
            end = min(top + ROWS, p)
            weights = None
            if self._scales is not None and self._scales.per not in ("tensor", "row"):
                weights = _importance(self._scales, top, end)[:, span]
            self._codes[top:end, span] = best_codes(
                block[top:end],
                weights,
                self._tables,
                widths,
                self._params.memory,
                least=self._params.widths[0],
                start=None if start is None else start[top:end],
            )
        codes = self._codes[:, span]
        if not decode:
            return codes, None
        state = self._states(first, first + n)
        if len(self._params.widths) > 1:
            state = state + (self._mask[span].to(state.dtype) << self._params.memory)
        return codes, self._tables.view(-1)[state]

    def sections(self) -> Sections:
        """The packed codes; of wide columns the highest bit by itself, and which they are."""
        low = self._params.widths[0]
        sections = {"codes": pack(self._codes & (2**low - 1), low)}
        if len(self._params.widths) > 1:
            sections["high_bits"] = pack(self._codes[:, self._mask] >> low, 1)
            sections["wide"] = pack(self._mask.to(torch.uint8), 1)
        return sections

    def _states(self, first: int, last: int) -> Tensor:
        """States [p, last - first] after the codes of columns [first, last)."""
        begin = max(0, first - self._params.memory)  # a code of a bit or more a column
        span = slice(begin, last)
        states = states_of(self._codes[:, span], self._widths[span], self._params.memory)
        return states[:, first - begin :]


def choose_wide(params: TrellisQuantizer, values: Tensor, scales: ScaleField | None) -> Tensor:
    """bool [q]: the columns with most energy in weight space, as many as the size law says."""
    p, q = values.shape
    mask = torch.zeros(q, dtype=torch.bool, device=values.device)
    count = wide_columns(params, q)
    if not count:
        return mask
    energy = torch.zeros(q, dtype=torch.float64, device=values.device)
    for first in range(0, p, ROWS):
        last = min(first + ROWS, p)
        squares = values[first:last].square()
        if scales is not None:
            squares *= _importance(scales, first, last)
        energy += squares.sum(0, dtype=torch.float64)
    mask[energy.sort(descending=True, stable=True).indices[:count]] = True
    return mask


def sample(
    params: TrellisQuantizer,
    values: Tensor,
    scales: ScaleField | None,
    sharers: int,
    generator: torch.Generator,
) -> list[Segments]:
    """Random segments of a latent [p, q] for the table of each width, shared by `sharers` latents.

    The weights of a segment stand for its share of the latent, relative to the latent's energy,
    so that a matrix counts by its number of weights.
    """
    p = len(values)
    mask = choose_wide(params, values, scales)
    count = sample_segments(params, sharers)
    one = 1.0 if scales is None else unit(scales.scale)
    if scales is None:
        mean_square = float(values.square().mean(dtype=torch.float64))
    else:
        mean_square = scales.mean_square(one)
    pieces = []
    for wide in range(len(params.widths)):
        columns = (mask == bool(wide)).nonzero()[:, 0]
        if not len(columns):  # of a single column that is wide, or that cannot be
            nothing = values.new_zeros(count, SEGMENT)
            pieces.append(Segments(values=nothing, weights=nothing))
            continue
        length = min(SEGMENT, len(columns))
        row = torch.randint(p, (count, 1), generator=generator)
        start = torch.randint(len(columns) - length + 1, (count, 1), generator=generator)
        place = (start + torch.arange(length)).to(values.device)
        row, column = row.to(values.device), columns[place]
        part = values[row, column]
        weights = torch.ones_like(part)
        if scales is not None:
            weights = (scales.at(row.expand_as(column), column) / one).square()
        weights = weights * (p * len(columns) / part.numel() / (mean_square or 1.0))
        padding = (0, SEGMENT - length)
        pieces.append(
            Segments(
                values=torch.nn.functional.pad(part, padding),
                weights=torch.nn.functional.pad(weights, padding),
            )
        )
    return pieces


def fit_tables(
    params: TrellisQuantizer, pieces: Sequence[Segments], generator: torch.Generator
) -> Tensor:
    """Tables [widths, 2^memory] for segments of each width, in their stored type.

    Raises:
        CodecError: the stored type is too narrow for the values.
    """
    tables = torch.stack(
        [
            _fit_table(params, width, part, generator)
            for width, part in zip(params.widths, pieces, strict=True)
        ]
    )
    return stored(
        tables,
        TORCH_DTYPES[DTYPES[params.dtype]],
        "table values",
        "give the matrix `scales`, or store the codebook with `dtype: float32`",
    )


def _fit_table(
    params: TrellisQuantizer, width: int, part: Segments, generator: torch.Generator
) -> Tensor:
    """A table [2^memory] for segments of codes of `width` bits."""
    size = 2**params.memory
    known = part.values[part.weights > 0]
    if not len(known):
        return part.values.new_zeros(size)
    ordered = known.sort().values
    quantile = (torch.arange(size) * 2 + 1) * len(ordered) // (2 * size)
    order = torch.randperm(size, generator=generator)
    table = ordered[quantile[order].to(ordered.device)]
    widths = [width] * SEGMENT
    # Only ratios of weights matter: the largest is made 1, far from any overflow.
    weights = part.weights / part.weights.max()
    mass = torch.stack([part.values * weights, weights, (weights > 0).to(weights)], dim=-1)
    flat = mass.view(-1, 3)
    for _ in range(params.iterations):
        codes = best_codes(part.values, weights, table[None, :], widths, params.memory)
        state = states_of(codes, widths, params.memory).view(-1)
        total = sums_by_codeword(flat, state, size)  # [2^memory, 3]
        mean = (total[:, 0] / total[:, 1].clamp(min=1e-300)).to(table.dtype)
        table = torch.where(total[:, 2] >= FEWEST, mean, table)
    return table


def _importance(scales: ScaleField, first: int, last: int) -> Tensor:
    """[last - first, q]: squares of the scales of rows, in terms of the largest scale."""
    return scales.rows(first, last).div_(float(scales.scale.max()) or 1.0).square_()


class TrellisDecoder(RowDecoder):
    """Rows of trellis codes of a latent [p, q]."""

    def __init__(
        self,
        params: TrellisQuantizer,
        shape: tuple[int, int],
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.step = CODES_PER_GROUP
        self._params = params
        self._columns = shape[1]
        self._codes = sections["codes"]
        self._tables = sections["codebook"].to(self._codes.device, dtype)
        self._high: Tensor | None = None
        self._mask = torch.zeros(shape[1], dtype=torch.bool, device=self._codes.device)
        if len(params.widths) > 1:
            self._high = sections["high_bits"]
            self._mask = unpack(sections["wide"], 1, shape[1]).to(torch.bool)
            if int(self._mask.sum()) != wide_columns(params, shape[1]):
                raise CodecError("the mask of wide columns has not as many as the plan says")
        self._widths = [params.widths[wide] for wide in self._mask.tolist()]

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the normalised latent."""
        low, q, count = self._params.widths[0], self._columns, last - first
        codes = _rows_of(self._codes, low, first, count, q)
        if self._high is not None:
            wide = _rows_of(self._high, 1, first, count, wide_columns(self._params, q))
            codes = codes.clone()
            codes[:, self._mask] |= wide << low
        state = states_of(codes, self._widths, self._params.memory)
        if self._high is not None:
            # The table of wide columns follows that of the narrow ones.
            state += self._mask.to(state.dtype) << self._params.memory
        values = torch.index_select(self._tables.view(-1), 0, state.view(-1))
        return values.view(count, q)


def _rows_of(stream: Tensor, bits: int, first: int, count: int, columns: int) -> Tensor:
    """Codes [count, columns] of rows from `first`, a multiple of 8, on."""
    start = first * columns * bits // 8
    total = count * columns
    data = stream[start : start + bytes_of_bits(total * bits)]
    return unpack(data, bits, total).view(count, columns)


class TrellisCodec(QuantizerCodec[TrellisQuantizer]):
    """Rows as paths through a trellis."""

    def fit(self, params: TrellisQuantizer, latent: Latent) -> Sections:
        """The tables of one latent."""
        pieces = sample(params, latent.values, latent.scales, 1, latent.generator)
        return {"codebook": fit_tables(params, pieces, latent.generator)}

    def fit_group(
        self,
        params: TrellisQuantizer,
        latents: Iterable[Latent],
        count: int,
        generator: torch.Generator,
    ) -> Sections:
        """The common tables of several latents; each counts by its number of weights."""
        pieces: list[list[Segments]] = []
        for latent in latents:
            pieces.append(sample(params, latent.values, latent.scales, count, generator))
            del latent  # before the next one is made
        if not pieces:
            raise CodecError("a table needs at least one matrix")
        joined = [Segments.joined(parts) for parts in zip(*pieces, strict=True)]
        return {"codebook": fit_tables(params, joined, generator)}

    def coder(
        self, params: TrellisQuantizer, latent: Latent, tables: Mapping[str, Tensor]
    ) -> TrellisCoder:
        """By the tables as stored."""
        values = latent.values
        return TrellisCoder(params, latent, tables["codebook"].to(values.device, values.dtype))

    def decoder(
        self,
        params: TrellisQuantizer,
        shape: Shape,
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
        unit_range: bool,
    ) -> TrellisDecoder:
        """Values by their states."""
        return TrellisDecoder(params, shape, sections, dtype)
