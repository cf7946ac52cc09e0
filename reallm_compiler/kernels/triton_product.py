"""Products with packed matrices on CUDA devices, by the Triton kernels.

    few inputs   x -> rotated -> arranged -> sums over spans of columns -> finished
    many inputs  x -> rotated -> arranged -> panels of weights, matrix products -> finished

Rotated: the transforms' part for inputs. Arranged: in the order of the codes. Finished: rows
scaled, the transforms' part for outputs, the residual and the gains. Everything between is float32,
but for panels and what they are multiplied with, which have the type of the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from reallm_compiler.codecs.decode import work_dtype
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.windows import StoredFactors
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.plain import PlainProduct
from reallm_compiler.kernels.sides import Side, transform_sides
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
        sides: what its transforms do to inputs and to outputs, no factors after the inputs'.
        factors: of its residuals.
        dtype: type of activations.
    """

    def __init__(
        self,
        packed: PackedMatrix,
        codes: Codes,
        sides: tuple[Side, Side],
        factors: Sequence[StoredFactors],
        dtype: torch.dtype,
    ) -> None:
        self._packed = packed
        self._codes = codes
        self._dtype = dtype
        self._inputs, self._outputs = sides
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

        factors, block = self._inputs.before, self._inputs.block
        if factors is None and block == 1:
            return x
        n, q = x.shape
        out = torch.empty(n, q, dtype=dtype, device=x.device)
        size = max(block, 256)
        rotate[(ceil_div(q, size), n)](
            x,
            _or(factors, x),
            out,
            q,
            FACTORS=factors is not None,
            SIZE=size,
            BLOCK=block,
            STEPS=block.bit_length() - 1,
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
        self, parts: Tensor, row_factors: Tensor | None, residual: Tensor | None, n: int
    ) -> Tensor:
        """Outputs [n, p] of sums [spans, n or more, p]."""
        from reallm_compiler.kernels.triton_vectors import finish

        spans, count, p = parts.shape
        factors, block, gain = self._outputs.before, self._outputs.block, self._gain
        out = torch.empty(n, p, dtype=self._dtype, device=parts.device)
        size = max(block, 256)
        finish[(ceil_div(p, size), n)](
            parts,
            _or(row_factors, out),
            _or(factors, out),
            _or(residual, out),
            _or(gain, out),
            out,
            p,
            count,
            spans,
            ROW_FACTORS=row_factors is not None,
            FACTORS=factors is not None,
            RESIDUAL=residual is not None,
            GAINS=gain is not None,
            SIZE=size,
            BLOCK=block,
            STEPS=block.bit_length() - 1,
            **LAUNCH,
        )
        return out

    def _residual(self, x: Tensor) -> Tensor | None:
        """x R^T [n, p] of inputs [n, q], float32."""
        total: Tensor | None = None
        for one in self._factors:
            if len(x) > MOST_INPUTS:
                right = one.right if one.scales is None else one.right * one.scales[:, None]
                inner = x @ right.to(self._dtype).t()
                more = (inner @ one.left.to(self._dtype).t()).to(torch.float32)
            else:
                more = _times(one.left, None, _times(one.right, one.scales, x))
            total = more if total is None else total.add_(more)
        return total


def _times(matrix: Tensor, scales: Tensor | None, x: Tensor) -> Tensor:
    """x M^T [n, rows], float32, of a stored matrix whose rows count `scales`."""
    from reallm_compiler.kernels.triton_vectors import dense

    rows, columns = matrix.shape
    out = torch.empty(len(x), rows, device=x.device)
    # A long product is divided among all threads of a program, short ones lie side by side.
    wide = min(1 << (columns - 1).bit_length(), 1024)
    tall = max(1, 1024 // wide)
    dense[(ceil_div(rows, tall), len(x))](
        x,
        matrix,
        _or(scales, out),
        out,
        rows,
        columns,
        SCALES=scales is not None,
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
    factors: list[StoredFactors | None] = [
        codec_of(stage).factors(stage, packed.sections) for stage in packed.plan.residual
    ]
    sides = transform_sides(packed)
    if None in factors or sides is None or sides[0].after is not None:
        return None
    codes = codes_of(packed, sides[1].after)
    if codes is None:
        return None
    inputs, outputs = (_on(side, device) for side in sides)
    known = [one for one in factors if one is not None]
    return TritonProduct(packed, codes, (inputs, outputs), known, dtype)


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether triton is there."""
    return find_spec("triton") is not None


def _on(side: Side, device: torch.device) -> Side:
    if side.before is None:
        return side
    return Side(before=side.before.to(device, torch.float32).contiguous(), block=side.block)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A tensor, or another in its stead, which the kernel does not look at."""
    return other if tensor is None else tensor
