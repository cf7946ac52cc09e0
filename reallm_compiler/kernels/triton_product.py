"""Products with packed matrices on CUDA devices, by the Triton kernels.

    few inputs   x -> rotated -> arranged -> sums over spans of columns -> finished
    many inputs  x -> rotated -> arranged -> panels of weights, matrix products -> finished

Rotated: the transforms' part for inputs. Arranged: in the order of the codes. Finished: rows
scaled, the transforms' part for outputs, the residual and the gains. Everything between is float32,
but for panels and what they are multiplied with, which have the type of the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from reallm_compiler.codecs.decode import MatrixDecoder, residual_terms, work_dtype
from reallm_compiler.codecs.windows import Mixing
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.plain import PlainProduct
from reallm_compiler.kernels.triton_form import GROUPS, PLACES, TILE_ROWS, Codes, codes_of
from reallm_compiler.units import ceil_div

MOST_INPUTS = 8
"""Inputs up to which codes are looked up for each product; more pay for decoded panels."""

TOGETHER = 8
"""Sums that a thread carries along for one code: inputs times elements of a codeword."""

PROGRAMS = 512
"""Programs of a product, about: where rows alone make fewer, columns are divided as well."""

PANEL = 1 << 24
"""Weights of a decoded panel: 32 MB of 16-bit numbers."""

REGISTERS = 168
FEW_REGISTERS = 96
"""Registers of a thread, at most, for many sums and for few: with more of them fewer programs run
side by side, with fewer of them some would be spilled to memory."""

LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
"""Options of all kernels: 128 threads a program, products and sums in one instruction."""


class TritonProduct:
    """Products with one packed matrix [p, q] (`choose.Product`).

    Args:
        packed: the matrix, checked.
        codes: its codes.
        mixings: what its transforms do to inputs and to outputs.
        factors: L1 and L2 of its residuals.
        dtype: type of activations.
    """

    def __init__(
        self,
        packed: PackedMatrix,
        codes: Codes,
        mixings: tuple[Mixing, Mixing],
        factors: Sequence[tuple[Factor, Factor]],
        dtype: torch.dtype,
    ) -> None:
        self._packed = packed
        self._codes = codes
        self._dtype = dtype
        self._inputs, self._outputs = mixings
        self._column_gain = packed.sections.get("column_gain")
        self._gain = packed.sections.get("gain")
        self._factors = factors
        self._plain = PlainProduct(packed, dtype)

    def linear(self, x: Tensor) -> Tensor:
        """x W^^T: [n, q] -> [n, p]."""
        n = len(x)
        if not n:
            return x.new_empty(0, self._packed.shape[0])
        few = n <= MOST_INPUTS
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            inner = self._rotated(x, torch.float32 if few else self._dtype)
            parts = self._few(inner) if few else self._many(inner)
            # Panels have the factors of rows already.
            factors = self._codes.row_factors if few else None
            return self._finished(parts, factors, self._residual(x), n)

    def transposed(self, x: Tensor) -> Tensor:
        """x W^: [n, p] -> [n, q]."""
        return self._plain.transposed(x)

    def rows(self, rows: Tensor | range) -> Tensor:
        """Decoded rows [k, q]."""
        return self._plain.rows(rows)

    def _rotated(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What the transforms make of inputs [n, q]."""
        from reallm_compiler.kernels.triton_vectors import rotate

        gains, mixing = self._column_gain, self._inputs
        if gains is None and mixing.factors is None and mixing.block == 1:
            return x
        n, q = x.shape
        out = torch.empty(n, q, dtype=dtype, device=x.device)
        size = max(mixing.block, 256)
        rotate[(ceil_div(q, size), n)](
            x,
            _or(gains, x),
            _or(mixing.factors, x),
            out,
            q,
            GAINS=gains is not None,
            SIGNS=mixing.factors is not None,
            SIZE=size,
            BLOCK=mixing.block,
            STEPS=mixing.block.bit_length() - 1,
            **LAUNCH,
        )
        return out

    def _arranged(
        self, x: Tensor, together: int, dtype: torch.dtype, factors: Tensor | None
    ) -> Tensor:
        """Inputs [n, q] by places, [n / together, orders, blocks, 16, together, GROUPS]."""
        from reallm_compiler.kernels.triton_vectors import arrange

        codes = self._codes
        (n, q), places = x.shape, codes.blocks * PLACES
        chunks = ceil_div(n, together)
        out = torch.empty(chunks * together * codes.orders * places, dtype=dtype, device=x.device)
        arrange[(codes.blocks, chunks * together, codes.orders)](
            x,
            _or(codes.columns, x),
            _or(factors, x),
            out,
            n,
            q,
            places,
            codes.orders,
            ORDER=codes.columns is not None,
            FACTORS=factors is not None,
            TOGETHER=together,
            GROUPS=GROUPS,
            **LAUNCH,
        )
        return out

    def _few(self, x: Tensor) -> Tensor:
        """Sums over spans of columns, float32 [spans, n or more, p], of a few inputs [n, q]."""
        from reallm_compiler.kernels.triton_kernels import product

        codes, n = self._codes, len(x)
        together = min(1 << (n - 1).bit_length(), TOGETHER // codes.dim)
        chunks, lines = ceil_div(n, together), TILE_ROWS // codes.dim
        arranged = self._arranged(x, together, torch.float32, codes.column_factors)
        tiles = ceil_div(codes.lines, lines)
        spans = min(codes.blocks, ceil_div(PROGRAMS, tiles * chunks))
        span = ceil_div(codes.blocks, spans)
        spans = ceil_div(codes.blocks, span)
        out = torch.empty(spans, chunks * together, codes.shape[0], device=x.device)
        product[(tiles, spans, chunks)](
            arranged,
            *self._stored,
            out,
            codes.unit,
            *self._extents,
            span * GROUPS,
            **codes.constants,
            INPUTS=together,
            LINES=lines,
            maxnreg=REGISTERS if together * codes.dim > 2 else FEW_REGISTERS,
            **LAUNCH,
        )
        return out

    def _many(self, x: Tensor) -> Tensor:
        """Sums of many inputs [n, q] in the type of activations, [1, n, p]."""
        codes, n, p = self._codes, len(x), self._codes.shape[0]
        scattered = codes.orders > 1
        if not scattered:
            x = self._arranged(x, 1, self._dtype, None).view(n, -1)
        x = x.to(self._dtype)
        out = torch.empty(1, n, p, dtype=self._dtype, device=x.device)
        step = max(PANEL // x.shape[1] // TILE_ROWS, 1) * TILE_ROWS
        for first in range(0, p, step):
            weights = self._panel(first, min(first + step, p), x.shape[1], scattered)
            torch.mm(x, weights.t(), out=out[0, :, first : first + step])
        return out

    def _panel(self, first: int, last: int, columns: int, scattered: bool) -> Tensor:
        """Weights of rows [first, last) before transforms are undone, [last - first, columns]."""
        from reallm_compiler.kernels.triton_kernels import panel

        codes = self._codes
        lines = TILE_ROWS // codes.dim
        # Zeros stand where no column is written.
        out = torch.empty(last - first, columns, dtype=self._dtype, device=codes.words.device)
        begin, end = first // codes.dim, ceil_div(last, codes.dim)
        panel[(ceil_div(end - begin, lines), codes.blocks)](
            *self._stored,
            _or(codes.row_factors, out),
            _or(codes.column_factors, out),
            _or(codes.columns, out),
            out,
            codes.unit,
            begin,
            last,
            *self._extents[1:],
            columns,
            **codes.constants,
            ROW_FACTORS=codes.row_factors is not None,
            COLUMN_FACTORS=codes.column_factors is not None,
            SCATTER=scattered,
            LINES=lines,
            **LAUNCH,
        )
        return out

    @cached_property
    def _stored(self) -> tuple[Tensor, ...]:
        codes = self._codes
        return codes.words, codes.table, *codes.scales.tensors, *codes.zeros.tensors

    @cached_property
    def _extents(self) -> tuple[int, ...]:
        codes = self._codes
        return (
            codes.shape[0],
            codes.lines,
            codes.groups,
            codes.words.numel(),
            codes.line_bits,
            codes.lines_per_order,
            codes.runs,
        )

    def _finished(
        self, parts: Tensor, factors: Tensor | None, residual: Tensor | None, n: int
    ) -> Tensor:
        """Outputs [n, p] of sums [spans, n or more, p]."""
        from reallm_compiler.kernels.triton_vectors import finish

        spans, count, p = parts.shape
        mixing, gain = self._outputs, self._gain
        out = torch.empty(n, p, dtype=self._dtype, device=parts.device)
        size = max(mixing.block, 256)
        finish[(ceil_div(p, size), n)](
            parts,
            _or(factors, out),
            _or(mixing.factors, out),
            _or(residual, out),
            _or(gain, out),
            out,
            p,
            count,
            spans,
            ROW_FACTORS=factors is not None,
            SIGNS=mixing.factors is not None,
            RESIDUAL=residual is not None,
            GAINS=gain is not None,
            SIZE=size,
            BLOCK=mixing.block,
            STEPS=mixing.block.bit_length() - 1,
            **LAUNCH,
        )
        return out

    def _residual(self, x: Tensor) -> Tensor | None:
        """x R^T [n, p] of inputs [n, q], float32."""
        total: Tensor | None = None
        for left, right in self._factors:
            if len(x) > MOST_INPUTS:
                inner = x @ right.decoded(self._dtype).t()
                more = (inner @ left.decoded(self._dtype).t()).to(torch.float32)
            else:
                more = left.times(right.times(x))
            total = more if total is None else total.add_(more)
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class Factor:
    """A factor of a low-rank residual as it is stored.

    Attributes:
        matrix: integers or floating-point numbers [rows, columns].
        scales: of its rows or its columns; None for ones.
        by_columns: which of them.
    """

    matrix: Tensor
    scales: Tensor | None
    by_columns: bool

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The factor."""
        if self.scales is None:
            return self.matrix.to(dtype)
        scales = self.scales.to(torch.float32)
        return (self.matrix * (scales if self.by_columns else scales[:, None])).to(dtype)

    def times(self, x: Tensor) -> Tensor:
        """Itself times inputs x [n, columns]: float32 [n, rows]."""
        from reallm_compiler.kernels.triton_vectors import dense

        rows, columns = self.matrix.shape
        out = torch.empty(len(x), rows, device=x.device)
        # A long product is divided among all threads of a program, short ones lie side by side.
        wide = min(1 << (columns - 1).bit_length(), 1024)
        tall = max(1, 1024 // wide)
        dense[(ceil_div(rows, tall), len(x))](
            x,
            self.matrix,
            _or(self.scales, out),
            out,
            rows,
            columns,
            SCALES=self.scales is not None and not self.by_columns,
            COLUMN_SCALES=self.scales is not None and self.by_columns,
            ROWS=tall,
            COLUMNS=wide,
            **LAUNCH,
        )
        return out


def triton_product(
    packed: PackedMatrix, device: torch.device, dtype: torch.dtype
) -> TritonProduct | None:
    """The product with a packed matrix by Triton; None for forms that its kernels do not know."""
    if torch.float64 in (dtype, work_dtype(packed.layout.source_dtype)) or not installed():
        return None
    factors, mixings = _factors(packed), _mixings(packed)
    codes = None if factors is None or mixings is None else codes_of(packed)
    if factors is None or mixings is None or codes is None:
        return None
    return TritonProduct(packed, codes, mixings, factors, dtype)


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether triton is there."""
    return find_spec("triton") is not None


def _mixings(packed: PackedMatrix) -> tuple[Mixing, Mixing] | None:
    """What the transforms do to inputs and to outputs; None if it is not that."""
    decoder = MatrixDecoder(packed.layout, packed.sections, torch.float32, coded_only=True)
    if not decoder.transforms:
        return Mixing(), Mixing()
    sides = decoder.transforms[0].mixing() if len(decoder.transforms) == 1 else None
    if sides is None:
        return None
    inputs, outputs = (_on(side, packed.device) for side in sides)
    return inputs, outputs


def _on(mixing: Mixing, device: torch.device) -> Mixing:
    if mixing.factors is None:
        return mixing
    factors = mixing.factors.to(device, torch.float32).contiguous()
    return Mixing(factors=factors, block=mixing.block)


def _factors(packed: PackedMatrix) -> list[tuple[Factor, Factor]] | None:
    """L1 and L2 of each residual; None where one is no such product."""
    terms = residual_terms(packed.plan.residual, packed.shape, packed.sections, torch.float32)
    pairs = [term.factors for term in terms]
    if None in pairs:
        return None
    return [
        (_factor(packed, "l1", pair[0], by_columns=True), _factor(packed, "l2", pair[1]))
        for pair in pairs
        if pair is not None
    ]


def _factor(
    packed: PackedMatrix, role: str, decoded: Tensor, *, by_columns: bool = False
) -> Factor:
    """A factor as it is stored, if it is what a section and its scales say, else decoded."""
    stored, scales = packed.sections.get(role), packed.sections.get(f"{role}_scales")
    if stored is not None and stored.shape == decoded.shape:
        factor = Factor(matrix=stored, scales=scales, by_columns=by_columns)
        if torch.equal(factor.decoded(torch.float32), decoded):
            return factor
    return Factor(matrix=decoded.contiguous(), scales=None, by_columns=by_columns)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A tensor, or another in its stead, which the kernel does not look at."""
    return other if tensor is None else tensor
