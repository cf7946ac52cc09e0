"""Trellis-coded quantiser: rows as paths through a bit-shift trellis (QTIP; Marcellin and Fischer).

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.codecs.assignment import sums_by_word
from reallm_compiler.codecs.numbers import stored, unit
from reallm_compiler.codecs.packing import CODES_PER_GROUP, pack, unpack
from reallm_compiler.codecs.scalar import Latent, RowReader
from reallm_compiler.codecs.scales import ScaleField
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections
from reallm_compiler.codecs.trellis_search import best_codes, states_of
from reallm_compiler.errors import CodecError
from reallm_compiler.layouts.base import DTYPES
from reallm_compiler.layouts.trellis import wide_columns
from reallm_compiler.recipe.stages import TrellisQuantizer
from reallm_compiler.units import bytes_of_bits, ceil_div

SEGMENT = 128
"""Values of a sequence that a table is learned from."""

SAMPLES = 64
"""Values for each entry of a table that it is learned from, and at least `LEAST_SEGMENTS`."""

LEAST_SEGMENTS = 128

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


def encode(params: TrellisQuantizer, latent: Latent) -> Sections:
    """Sections of the codes and, unless it was given, of the tables."""
    values, scales = latent.values, latent.scales
    p, q = values.shape
    mask = choose_wide(params, values, scales)
    if latent.codebook is None:
        pieces = sample(params, values, scales, 1, latent.generator)
        codebook = fit_tables(params, pieces, latent.generator)
    else:
        codebook = latent.codebook.to(values.device)
    tables = codebook.to(values.dtype)
    widths = [params.widths[wide] for wide in mask.tolist()]
    codes = torch.empty(p, q, dtype=torch.uint8, device=values.device)
    for first in range(0, p, ROWS):
        last = min(first + ROWS, p)
        weights = None
        if scales is not None and scales.per not in ("tensor", "row"):
            weights = _importance(scales, first, last)
        codes[first:last] = best_codes(values[first:last], weights, tables, widths, params.memory)
    low = params.widths[0]
    sections = {"codes": pack(codes & (2**low - 1), low)}
    if len(params.widths) > 1:
        sections["high_bits"] = pack(codes[:, mask] >> low, 1)
        sections["wide"] = pack(mask.to(torch.uint8), 1)
    if latent.codebook is None:
        sections["codebook"] = codebook
    return sections


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


def sample_segments(params: TrellisQuantizer, sharers: int) -> int:
    """Segments that `sample` takes of each of so many latents, for each width."""
    wanted = max(LEAST_SEGMENTS, SAMPLES * 2**params.memory // SEGMENT)
    return ceil_div(wanted, sharers)


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
        total = sums_by_word(flat, state, size)  # [2^memory, 3]
        mean = (total[:, 0] / total[:, 1].clamp(min=1e-300)).to(table.dtype)
        table = torch.where(total[:, 2] >= FEWEST, mean, table)
    return table


def _importance(scales: ScaleField, first: int, last: int) -> Tensor:
    """[last - first, q]: squares of the scales of rows, in terms of the largest scale."""
    return scales.rows(first, last).div_(float(scales.scale.max()) or 1.0).square_()


class TrellisReader:
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


def reader(
    params: TrellisQuantizer,
    shape: tuple[int, int],
    sections: Mapping[str, Tensor],
    dtype: torch.dtype,
    unit_range: bool,
) -> RowReader:
    """A reader of the codes of a latent [p, q]."""
    return TrellisReader(params, shape, sections, dtype)
