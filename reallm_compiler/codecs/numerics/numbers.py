"""Numbers near the ends of their types: rounding to what is stored, and units for large squares.

A narrow type loses numbers at both ends. Above its largest one they become infinities, which is
always refused. Below its least normal one they keep fewer digits and then none; that is refused
where the matrix would feel it:

    sqrt(sum ((v' - v) cost)^2)  >  LOST x size      over the values v below the least normal number

with v' as stored, `cost` what an error of 1 in a value costs the matrix, and `size` what the cost
is held against. So zeros pass, and a few tiny scales beside large ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reallm_compiler.errors import CodecError

LOST = 1 / 128
"""The largest relative error that numbers too small for their stored type may bring."""

ORDINARY = 2.0**40
"""Up to here, and down to its inverse, sums of squares fit into float32."""


PIECE = 1 << 20
"""Numbers that are looked at in one step."""


def stored(
    values: Tensor,
    dtype: torch.dtype,
    what: str,
    hint: str,
    *,
    cost: Tensor | None = None,
    size: float | None = None,
) -> Tensor:
    """`values` as they are stored, contiguous.

    Args:
        values: finite numbers, of any shape.
        dtype: the stored type.
        what: the values as an error names them, such as `scales`.
        hint: what to do if the type is too narrow.
        cost: what an error of 1 in each value costs, of the shape of `values`; ones when None.
        size: what the cost is held against; that of losing all values when None.

    Raises:
        CodecError: a value overflows the type, or too much is lost below its least normal number.
    """
    result = values.to(dtype)
    check_overflow(values, result, what, hint)
    loss = Loss(dtype)
    loss.add(values, result, cost)
    loss.check(what, hint, size)
    return result.contiguous()


def check_overflow(values: Tensor, cast: Tensor, what: str, hint: str) -> None:
    """Refuse values that `cast`, the same in a stored type, does not hold as finite numbers."""
    wide = cast.to(torch.float32) if cast.element_size() == 1 else cast
    if not torch.isfinite(wide).all():
        raise CodecError(
            f"{what} up to {float(values.abs().max()):.6g} overflow {type_name(cast.dtype)}",
            hint=hint,
        )


class Loss:
    """What numbers lose that are too small for their stored type, summed up piece by piece."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._lost = 0.0  # sums of squares
        self._all = 0.0
        self._range = (math.inf, 0.0)

    def add(self, values: Tensor, cast: Tensor, cost: Tensor | None = None) -> None:
        """Take in values, the same in the stored type, and what an error of 1 in each costs."""
        if values.dtype == cast.dtype:
            return
        least_normal = torch.finfo(self._dtype).smallest_normal
        parts = [values.reshape(-1), cast.reshape(-1)] + ([] if cost is None else [cost.view(-1)])
        for exact, rough, *costs in zip(*(torch.split(part, PIECE) for part in parts), strict=True):
            exact = exact.to(torch.float64)
            factor = costs[0].to(torch.float64) if costs else 1.0
            finite = torch.where(torch.isfinite(exact), exact, 0.0)
            self._all += float((finite * factor).square_().sum())
            sizes = exact.abs()
            small = (sizes > 0) & (sizes < least_normal)
            if small.any():
                wrong = (exact - rough.to(torch.float64)) * factor
                self._lost += float(wrong[small].square_().sum())
                least, most = map(float, torch.aminmax(sizes[small]))
                self._range = min(self._range[0], least), max(self._range[1], most)

    def check(self, what: str, hint: str, size: float | None = None) -> None:
        """Refuse a loss of more than `LOST` of `size`, or of all that was taken in.

        Raises:
            CodecError: with the range of the numbers that are too small.
        """
        lost, whole = math.sqrt(self._lost), math.sqrt(self._all) if size is None else size
        if lost > LOST * whole:
            least, most = self._range
            raise CodecError(
                f"{what} from {least:.3g} to {most:.3g} are too small for "
                f"{type_name(self._dtype)}, which holds "
                f"{torch.finfo(self._dtype).smallest_normal:.3g} and more in full",
                note=f"{min(lost / whole, 1) if whole else 1:.3g} of their size would be lost; "
                f"{LOST:.3g} is allowed",
                hint=hint,
            )


def norm(values: Tensor) -> float:
    """Root of the sum of squares, in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def unit(values: Tensor) -> float:
    """A power of two to divide by before squares are taken: 1 unless all squares could be lost.

    Division by it is exact, so that arithmetic on what is left gives the same digits. Its
    exponent is even: its root is exact too.
    """
    largest = max(map(abs, map(float, torch.aminmax(values)))) if values.numel() else 0.0
    if largest == 0 or 1 / ORDINARY <= largest <= ORDINARY or not math.isfinite(largest):
        return 1.0
    # Within what float32 holds as a normal number, for it is there that the division takes place.
    return 2.0 ** max((math.frexp(largest)[1] - 1) // 2 * 2, -126)


def type_name(dtype: torch.dtype) -> str:
    """The name of a type, such as `float16`."""
    return str(dtype).removeprefix("torch.")
