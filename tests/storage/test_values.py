"""Value laws on the bytes that sections store: every type, and the edges of pieces."""

from __future__ import annotations

import numpy as np
import pytest

from reallm_compiler.storage import values
from reallm_compiler.storage.values import Anything, Finite, Ones, Order

PATTERNS = {
    "f8_e4m3": ("u1", 0x7E, 0x7F),
    "f8_e5m2": ("u1", 0x7B, 0x7C),
    "f16": ("<u2", 0x7BFF, 0x7C00),
    "bf16": ("<u2", 0x7F7F, 0x7F80),
    "f32": ("<u4", 0x7F7FFFFF, 0x7F800000),
    "f64": ("<u8", 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000),
}
"""By type: its bits as integers, the largest number, and what follows it."""


@pytest.mark.parametrize("dtype", PATTERNS)
def test_the_largest_number_is_finite_and_the_next_is_not(dtype: str) -> None:
    kind, largest, beyond = PATTERNS[dtype]
    sign = 1 << (8 * np.dtype(kind).itemsize - 1)
    for bits in (largest, largest | sign, 0, sign):
        data = memoryview(np.array([0, bits], dtype=kind).tobytes())
        assert Finite().problem(data, dtype, (2,)) is None
        below = Finite(negative=False).problem(data, dtype, (2,))
        assert below == ("element 1 is negative" if bits == largest | sign else None)
        some = memoryview(np.array([largest, bits], dtype=kind).tobytes())
        nothing = Finite(zero=False).problem(some, dtype, (2,))
        assert nothing == ("element 1 is zero" if bits in (0, sign) else None)
    for bits in (beyond, beyond | sign):
        data = memoryview(np.array([0, bits], dtype=kind).tobytes())
        assert Finite().problem(data, dtype, (2,)) == "element 1 is not a finite number"


def test_elements_are_counted_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "PIECE", 64)
    data = np.zeros(200, dtype="<f4")
    data[150] = np.nan
    assert "element 150 " in str(Finite().problem(memoryview(data.tobytes()), "f32", (200,)))


@pytest.mark.parametrize("dtype", ["i8", "b3", "u8"])
def test_what_is_no_float_has_a_meaning(dtype: str) -> None:
    assert Finite().problem(memoryview(b"\xff"), dtype, (1,)) is None
    assert Anything().problem(memoryview(b"\xff"), dtype, (1,)) is None


@pytest.mark.parametrize(
    ("rows", "columns", "bits"), [(1, 5, 3), (30, 7, 3), (3, 300, 9), (9, 1, 1)]
)
def test_orders_at_every_row(
    rows: int, columns: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "PIECE", 64)
    rng = np.random.default_rng(0)
    codes = np.stack([rng.permutation(columns) for _ in range(rows)])
    law, dtype = Order(), f"b{bits}"

    def problem() -> str | None:
        wide = (codes.reshape(-1)[:, None] >> np.arange(bits)) & 1
        data = np.packbits(wide.astype(np.uint8), bitorder="little").tobytes()
        return law.problem(memoryview(data), dtype, codes.shape)

    assert problem() is None
    for row in range(rows):
        kept = codes[row].copy()
        codes[row, -1] = codes[row, 0] if columns > 1 else 1
        assert f"row {row} is not a permutation of {columns} numbers" in str(problem())
        codes[row] = kept


def test_ones() -> None:
    assert Ones(3).problem(memoryview(b"\x07\x00"), "b1", (9,)) is None
    assert Ones(3).problem(memoryview(b"\x07\x01"), "b1", (9,)) == (
        "4 bits are set where 3 must be"
    )
