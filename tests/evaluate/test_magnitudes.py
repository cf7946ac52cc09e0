"""What scales are worth: by the formula as by the codec, and nothing in noise."""

from __future__ import annotations

import math

import pytest
import torch

from reallm_compiler.codecs import encode_matrix
from reallm_compiler.evaluate.magnitudes import codebook_gain, scale_gains
from reallm_compiler.stages import MatrixPlan
from tests.evaluate.samples import noise


def smooth(count, octaves, turns):
    """Deviations that change slowly, 2^-octaves to 2^octaves."""
    return torch.exp2(octaves * torch.sin(turns * torch.linspace(0, 1, count)))


def relative_error(weight, per):
    plan = MatrixPlan.model_validate(
        {
            "scales": {"kind": "rms", "per": per, "dtype": "float16"},
            "quantizer": {"kind": "vq", "bits": 3, "dim": 2},
        }
    )
    return encode_matrix(plan, weight.clone(), seed=0, source_dtype="f32").relative_error


@pytest.mark.parametrize("octaves", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("per", ["row", "column"])
def test_the_gain_is_what_the_codec_gains(octaves, per):
    scales = smooth(256, octaves, 7)
    weight = noise(1, 256, 256) * (scales[:, None] if per == "row" else scales)
    gains = {one.per: one for one in scale_gains(weight)}
    # A vector lies along a row, so scales of rows are what its two weights share.
    if per == "row":
        measured = math.log2(relative_error(weight, "tensor") / relative_error(weight, per))
        assert gains[per].gain_bits == pytest.approx(measured, abs=0.03)
    other = "column" if per == "row" else "row"
    assert gains[per].gain_bits > 0.05
    assert gains[other].gain_bits < 0.02
    assert gains[per].cost_bits == 16 / 256
    assert gains[per].net_bits == gains[per].gain_bits - gains[per].cost_bits


def test_noise_gains_nothing():
    for one in scale_gains(noise(2, 256, 320)):
        assert one.gain_bits == pytest.approx(0, abs=5e-3)
    assert all(one.gain_bits == 0 for one in scale_gains(torch.zeros(6, 8)))
    # A short block at the end of each row is no sign of structure.
    assert scale_gains(noise(2, 256, 65))[2].gain_bits == pytest.approx(0, abs=5e-3)


def test_a_codebook_for_two_deviations():
    levels = torch.tensor([0.0, 2.0], dtype=torch.float64)
    # The integral of sqrt(f) by itself, on a fine even grid.
    radius = torch.linspace(0, 60, 400_001, dtype=torch.float64)
    parts = [torch.exp(-0.5 * (radius / s) ** 2) / (2 * math.pi * s**2) for s in (1.0, 4.0)]
    whole = torch.trapezoid((sum(parts) / 2).sqrt() * 2 * math.pi * radius, radius)
    slow = 0.5 * math.log2(float(whole**2) / (8 * math.pi * 8.5))
    assert codebook_gain(levels) == pytest.approx(slow, abs=0.01)
    assert codebook_gain(levels + 5) == pytest.approx(codebook_gain(levels))
    assert codebook_gain(torch.full((7,), 3.0, dtype=torch.float64)) == 0
    # Groups that are all but zero have no codes and no error.
    tiny = torch.tensor([0.0, -900.0], dtype=torch.float64)
    assert codebook_gain(tiny) == pytest.approx(0, abs=0.02)


def test_a_single_line_is_no_mistake():
    for shape in ((1, 40), (40, 1), (1, 1)):
        assert all(math.isfinite(one.net_bits) for one in scale_gains(noise(3, *shape)))
