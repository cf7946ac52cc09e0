"""The lattice quantizer: points by their definition, the nearest of them, what they lose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from reallm_compiler.codecs.numerics.lattice import e8_words, e8p_points, nearest_e8p, patterns
from tests.codecs.conftest import RAGGED

RMS = {"kind": "rms", "per": "tensor"}


def planned(plan_of, bits: int, **stages):
    return plan_of(scales=RMS, quantizer={"kind": "e8p", "bits": bits}, **stages)


def test_the_points_are_those_of_a_shifted_lattice():
    points = e8p_points()
    assert len(torch.unique(points, dim=0)) == 65536
    shift = torch.where(torch.arange(65536) < 32768, 0.25, -0.25)[:, None].double()
    inner = points + shift  # halves of odd integers with an even sum: E8 less its integer points
    assert torch.equal((2 * inner) % 2, torch.ones_like(inner))
    assert not (inner.sum(1) % 2).any()
    squares = patterns().square().sum(1)
    assert (int((squares <= 10).sum()), int((squares == 12).sum())) == (227, 29)


def test_the_words_of_the_rest_are_short_points_of_e8():
    words = e8_words()
    assert len(torch.unique(words, dim=0)) == 256
    assert not (words.sum(1) % 2).any()
    assert torch.equal(words % 1, (words[:, :1] % 1).expand_as(words))  # integers, or all halves
    assert torch.bincount(words.square().sum(1).long()).tolist() == [1, 0, 240, 0, 15]


def test_points_and_words_are_those_of_the_specification():
    spec = (Path(__file__).parents[2] / "formats" / "SPEC.md").read_text("utf-8")
    rows = re.findall(r"^    (0x\w{4} .*)$", spec, re.MULTILINE)
    assert len(rows) == 3
    for code, *numbers in map(str.split, rows):
        point, index, word = numbers[:8], int(numbers[8]), numbers[9:]
        assert (4 * e8p_points()[int(code, 16)]).tolist() == [int(one) for one in point]
        assert (2 * e8_words()[index]).tolist() == [int(one) for one in word]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_search_finds_the_nearest_point(weighted, gaussian):
    """Against all 65,536 of them."""
    values = torch.cat([gaussian(30, 8), 4 * gaussian(20, 8, seed=1), torch.zeros(1, 8)]).double()
    weights = gaussian(51, 8, seed=2).double().square() + 0.1 if weighted else None
    found = e8p_points()[nearest_e8p(values, weights)]
    cost = torch.ones_like(values) if weights is None else weights
    error = ((values - found).square() * cost).sum(1)
    for one, given, least in zip(values, cost, error, strict=True):
        best = ((one - e8p_points()).square() * given).sum(1).min()
        assert float(least) == pytest.approx(float(best), abs=1e-9)


@pytest.mark.parametrize(("bits", "loss"), [(2, 0.0918), (3, 0.0295), (4, 0.0096)])
def test_loss_on_normal_weights(bits, loss, gaussian, plan_of, check_codec):
    """Of QuIP#'s paper at 2 bits; 3 and 4 bits as measured once."""
    encoded = check_codec(planned(plan_of, bits), gaussian(256, 1024))
    assert encoded.relative_error**2 == pytest.approx(loss, abs=0.001 if bits == 2 else loss / 50)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shape", RAGGED)
def test_battery(shape, bits, gaussian, plan_of, check_codec):
    check_codec(planned(plan_of, bits), gaussian(*shape))


@pytest.mark.parametrize("scales", [{"kind": "rms", "per": "column"}, {"kind": "rms", "block": 12}])
def test_scales_within_a_vector_weigh_its_errors(scales, gaussian, plan_of, check_codec):
    weight = gaussian(32, 48) * torch.logspace(-1, 1, 48)
    plan = plan_of(scales=scales, quantizer={"kind": "e8p"})
    plain = plan_of(scales={**scales, "kind": "absmax"}, quantizer={"kind": "uniform", "bits": 2})
    assert check_codec(plan, weight).relative_error < check_codec(plain, weight).relative_error
