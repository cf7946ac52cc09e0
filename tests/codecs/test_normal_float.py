"""NF-b: the published tables, ties, and the round trip."""

from __future__ import annotations

import pytest
import torch
from scipy.special import erfinv

from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.quantizers.normal_float import levels

TABLES = {
    1: [0, 1],
    2: [-1, 0, 0.33791519, 1],
    3: [-1, -0.47862916, -0.21714182, 0, 0.16093017, 0.33791519, 0.56261697, 1],
    4: [
        -1, -0.69619289, -0.52507304, -0.39491749, -0.28444136, -0.18477344, -0.09104999, 0,
        0.07958033, 0.16093017, 0.24611229, 0.33791519, 0.44070980, 0.56261697, 0.72295673, 1,
    ],
}  # fmt: skip


# The constants of bitsandbytes, as their float32 numbers are written out.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


@pytest.mark.parametrize("bits", TABLES)
def test_published_tables(bits):
    assert levels(bits).tolist() == pytest.approx(TABLES[bits], abs=2e-7)


def test_levels_of_nf4_are_those_of_bitsandbytes_to_the_last_bit():
    assert levels(4).tolist() == NF4


@pytest.mark.parametrize("bits", list(range(1, 9)))
def test_formula_by_erfinv(bits):
    offset, half = 0.9677083, 2 ** (bits - 1)
    sigma = -1 / (2**0.5 * erfinv(1 - 2 * offset))
    low = [1 - offset + (offset - 0.5) * i / max(half - 1, 1) for i in range(half - 1)]
    high = [0.5 + (offset - 0.5) * i / half for i in range(half + 1)]
    expected = [float(sigma * 2**0.5 * erfinv(2 * x - 1)) for x in low + high]
    assert levels(bits).tolist() == pytest.approx(expected, abs=3e-7)
    assert (levels(bits).diff() > 0).all()
    assert {0.0, 1.0} <= set(levels(bits).tolist())


def brute_codes(weight: torch.Tensor, block: int, bits: int) -> torch.Tensor:
    blocks = weight.view(-1, block)
    x = blocks / blocks.abs().amax(1, keepdim=True)
    table = levels(bits).to(torch.float32)
    return (x[..., None] - table).abs().argmin(-1).view(-1)


@pytest.mark.parametrize("bits", list(range(1, 9)))
def test_codes_are_the_nearest_levels_of_each_block(bits, gaussian, plan_of, check_codec):
    weight = gaussian(64, 128)
    plan = plan_of(
        scales={"kind": "absmax", "block": 64}, quantizer={"kind": "normal_float", "bits": bits}
    )
    encoded = check_codec(plan, weight)
    codes = unpack(encoded.sections["codes"], bits, weight.numel())
    assert torch.equal(codes.long(), brute_codes(weight, 64, bits))


@pytest.mark.parametrize(("bits", "mse"), [(2, 0.3175), (3, 0.0407)])
def test_error_on_normal_weights(bits, mse, gaussian, plan_of, check_codec):
    plan = plan_of(
        scales={"kind": "absmax", "block": 64}, quantizer={"kind": "normal_float", "bits": bits}
    )
    error = check_codec(plan, gaussian(512, 512)).relative_error ** 2
    assert error == pytest.approx(mse, rel=0.01)
