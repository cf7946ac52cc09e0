"""Gains of rows never hurt."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm_compiler.codecs import decode_matrix, dora, encode_matrix
from reallm_compiler.errors import CodecError


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-2, 1.0, 100.0]), q=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_never_farther_than_before(seed, size, q):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, q, generator=generator) * size
    decoded = weight * torch.rand(6, 1, generator=generator) * 2
    decoded += torch.randn(6, q, generator=generator) * size * 0.5
    decoded[0] = 0
    gain = dora.stored(dora.gain(weight, decoded))
    rescaled = decoded * gain.float()[:, None]
    before = (weight - decoded).norm(dim=1)
    after = (weight - rescaled).norm(dim=1)
    slack = weight.norm(dim=1) * 2**-10  # float16's rounding of g
    assert (after <= before + slack).all()
    assert not rescaled[0].any()


def test_the_formula():
    weight = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    decoded = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, 0.0]])
    gain = dora.gain(weight, decoded)
    # <W, W^> / |W^|^2: 3 / 2, 4 / 8, and 0 for a row that points away.
    assert gain.tolist() == pytest.approx([1.5, 0.5, 0.0])
    assert torch.equal(dora.gain(weight * 2.0**80, decoded * 2.0**80), gain)  # squares overflow


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 4), (33, 100), (172, 64)])
@pytest.mark.parametrize(
    ("residual", "quantizer"),
    list(
        itertools.product(
            [{"kind": "none"}, {"kind": "low_rank", "rank": 2}],
            [{"kind": "normal_float", "bits": 2}, {"kind": "vq", "bits": 1, "dim": 4}],
        )
    ),
    ids=lambda fields: fields["kind"],
)
def test_battery(shape, residual, quantizer, gaussian, plan_of, check_codec):
    fields = {"residual": residual, "scales": {"kind": "absmax"}, "quantizer": quantizer}
    weight = gaussian(*shape)
    plain = check_codec(plan_of(**fields), weight).relative_error
    tuned = check_codec(plan_of(**fields, dora=True), weight).relative_error
    assert tuned <= plain * (1 + 1e-6) + 2**-11


def test_a_row_of_zeros_stays_zero(gaussian, plan_of):
    weight = gaussian(6, 64)
    weight[2] = 0
    plan = plan_of(
        scales={"kind": "absmax", "per": "row"},
        quantizer={"kind": "normal_float", "bits": 3},
        dora=True,
    )
    encoded = encode_matrix(plan, weight, seed=0, source_dtype="f32")
    assert float(encoded.sections["gain"][2]) == 0
    back = decode_matrix(plan, (6, 64), "f32", encoded.sections, dtype=torch.float32)
    assert not back[2].any()


def test_magnitudes_and_gains_are_two_names_of_a_row(gaussian, monkeypatch):
    monkeypatch.setattr(dora, "PANEL", 30)  # panels of three rows
    coded, left, right = gaussian(8, 10), gaussian(8, 2, seed=1), gaussian(2, 10, seed=2)
    coded[3], left[3] = 0, 0
    norms = dora.row_norms(coded, left, right)
    torch.testing.assert_close(norms, (coded + left @ right).norm(dim=1))
    gain = dora.stored(gaussian(8).abs()).float()
    again = dora.gain_of(gain * norms, norms)
    assert float(again[3]) == 0
    kept = [row for row in range(8) if row != 3]
    assert torch.equal(dora.stored(again)[kept], dora.stored(gain)[kept])


def test_overflow_is_refused():
    with pytest.raises(CodecError, match="rows up to 70000 overflow float16"):
        dora.stored(torch.tensor([1.0, 7e4]))
