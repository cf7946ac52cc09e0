"""Evenly spaced levels."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.codecs.numerics.packing import unpack
from reallm_compiler.codecs.quantizers.uniform import levels


def test_levels():
    assert levels(2, "signed").tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert levels(2, "unit").tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert levels(1, "signed").tolist() == [-1, 1]


@pytest.mark.parametrize("bits", list(range(1, 9)))
@pytest.mark.parametrize("kind", ["absmax", "minmax"])
def test_codes_are_the_nearest_levels(bits, kind, gaussian, plan_of, check_codec):
    weight = gaussian(16, 64)
    plan = plan_of(scales={"kind": kind, "per": "row"}, quantizer={"kind": "uniform", "bits": bits})
    encoded = check_codec(plan, weight)
    zero = weight.amin(1, keepdim=True) if kind == "minmax" else 0
    scale = weight.amax(1, keepdim=True) - zero if kind == "minmax" else weight.abs().amax(1, True)
    x = (weight - zero) / scale
    table = levels(bits, "unit" if kind == "minmax" else "signed").to(torch.float32)
    codes = unpack(encoded.sections["codes"], bits, weight.numel()).view(16, 64).long()
    chosen, best = (x - table[codes]).abs(), (x[..., None] - table).abs().amin(-1)
    assert (chosen <= best + 1e-6).all()


def test_values_outside_take_the_ends(plan_of, check_codec):
    weight = torch.tensor([[0.1, -0.1, 0.1, -8.0, 8.0, 0.1]])
    plan = plan_of(
        scales={"kind": "rms", "per": "tensor"}, quantizer={"kind": "uniform", "bits": 2}
    )
    codes = unpack(check_codec(plan, weight).sections["codes"], 2, 6)
    assert codes.tolist()[3:5] == [0, 3]


def test_more_bits_are_better(gaussian, plan_of, check_codec):
    errors = [
        check_codec(
            plan_of(scales={"kind": "minmax"}, quantizer={"kind": "uniform", "bits": bits}),
            gaussian(33, 100),
        ).relative_error
        for bits in range(1, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("kind", ["uniform", "normal_float"])
def test_under_rms_the_levels_reach_as_far_as_pays(kind, gaussian, plan_of, check_codec):
    """Without a factor all above one deviation would be cut off: an error near 0.4."""
    weight = gaussian(64, 256)
    errors = []
    for bits in (2, 4, 8):
        quantizer = {"kind": kind, "bits": bits}
        rms, absmax = (
            check_codec(
                plan_of(scales={"kind": scales, "per": "tensor"}, quantizer=quantizer), weight
            ).relative_error
            for scales in ("rms", "absmax")
        )
        assert rms < absmax * 1.1
        errors.append(rms)
    assert errors[0] < 0.4
    assert errors[-1] < 0.012
