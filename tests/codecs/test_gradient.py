"""Gradients to scales and tables: those of finite differences, for every kind that has some."""

from __future__ import annotations

import itertools

import pytest
import torch

from reallm_compiler.codecs import MatrixDecoder, encode_matrix, latent
from reallm_compiler.codecs.gradient import decode_tracked
from reallm_compiler.storage.matrix import layout_of
from tests.codecs.size_law import some_statistics

ROW = {"kind": "absmax", "per": "row"}
BLOCK = {"kind": "absmax", "block": 16, "bits": 8}
ROTATED = [{"kind": "hadamard", "block": 8}]
ORDER = {"kind": "nearest", "rows": 5}
NF = {"kind": "normal_float", "bits": 3}
VQ = {"kind": "vq", "bits": 2, "dim": 2}
TRELLIS = {"kind": "trellis", "bits": "9/4", "state_bits": 6}
PLANS = {
    "uniform": {"scales": ROW, "quantizer": {"kind": "uniform", "bits": 4}},
    "minmax": {"scales": {"kind": "minmax"}, "quantizer": {"kind": "uniform", "bits": 3}},
    "two levels": {"scales": BLOCK, "quantizer": NF},
    "an order": {"scales": ROW, "quantizer": NF, "permutation": ORDER},
    "rotated": {"scales": ROW, "quantizer": NF, "transform": ROTATED},
    "columns": {"scales": {"kind": "rms", "per": "column"}, "quantizer": VQ},
    "normalized": {"transform": [{"kind": "normalize", "block": 16}], "quantizer": VQ},
    "vectors": {"scales": ROW, "quantizer": VQ},
    "vectors of floats": {"scales": ROW, "quantizer": {**VQ, "dtype": "float16", "dim": 4}},
    "vectors of a row": {"scales": ROW, "quantizer": {**VQ, "axis": "cols", "dim": 4}},
    "no scales": {"quantizer": {**VQ, "bits": 1, "dim": 3}},
    "integer zero points": {
        "scales": {"kind": "affine", "code_bits": 3, "block": 16},
        "quantizer": {"kind": "uniform", "bits": 3},
    },
    "channels": {"scales": ROW, "quantizer": NF, "transform": [{"kind": "channel_scale"}]},
    "super-blocks": {
        "scales": {"kind": "minmax", "bits": 3, "superblock": 2, "offset": "superblock"},
        "quantizer": {"kind": "uniform", "bits": 3},
    },
    "trellis": {"scales": {"kind": "rms"}, "quantizer": TRELLIS, "transform": ROTATED},
}


@pytest.mark.parametrize("name", PLANS)
def test_gradients_are_those_of_finite_differences(name, gaussian, plan_of, monkeypatch):
    plan, shape = plan_of(**PLANS[name]), (24, 32)
    sections = encode_matrix(
        plan, gaussian(*shape), seed=0, source_dtype="f32", statistics=some_statistics(shape, 0)
    ).sections
    layout = layout_of(plan, shape, "f32")
    numbers = {
        spec.role: sections.pop(spec.role).float().requires_grad_()
        for spec in layout.sections
        if spec.term in ("scales", "codebook") and not spec.dtype.startswith("b")
    }
    assert numbers
    monkeypatch.setattr(latent, "PANEL", 32 * 8)  # three panels
    weight = decode_tracked(layout, sections, numbers)
    plain = MatrixDecoder(layout, {**sections, **numbers}, torch.float32)
    assert len(list(plain.panels())) >= 3
    with torch.no_grad():
        assert torch.equal(weight, torch.cat([plain.rows(*span) for span in plain.panels()]))
    direction = gaussian(*shape, seed=1)
    (weight * direction).sum().backward()

    def value(changed):
        wide = {role: one.double() for role, one in changed.items()}
        decoder = MatrixDecoder(layout, {**sections, **wide}, torch.float64)
        rows = torch.cat([decoder.rows(*span) for span in decoder.panels()])
        return float((rows * direction).sum())

    with torch.no_grad():
        for role, number in numbers.items():
            flat = number.view(-1)
            for index in list(range(len(flat)))[:: max(1, len(flat) // 5)]:
                step = 1e-3 * max(1.0, float(number.abs().max()))
                sides = []
                for sign in (1, -1):
                    moved = number.double().clone()
                    moved.view(-1)[index] += sign * step
                    sides.append(value({**numbers, role: moved}))
                slope = (sides[0] - sides[1]) / (2 * step)
                found = float(number.grad.view(-1)[index])
                assert found == pytest.approx(slope, rel=1e-3, abs=1e-4 + 1e-4 * abs(slope)), role


def test_only_what_needs_a_gradient_gets_one(gaussian, plan_of):
    plan, shape = plan_of(**PLANS["vectors"]), (8, 12)
    sections = encode_matrix(plan, gaussian(*shape), seed=0, source_dtype="f32").sections
    layout = layout_of(plan, shape, "f32")
    numbers = {role: sections.pop(role).float() for role in ("scales", "codebook")}
    numbers["scales"].requires_grad_()
    decode_tracked(layout, sections, numbers).sum().backward()
    assert numbers["codebook"].grad is None
    assert numbers["scales"].grad is not None


def test_gradients_of_several_matrices_add_up(gaussian, plan_of):
    plan = plan_of(**PLANS["vectors"])
    layout = layout_of(plan, (8, 12), "f32")
    first, second = (
        encode_matrix(plan, gaussian(8, 12, seed=seed), seed=0, source_dtype="f32").sections
        for seed in (0, 1)
    )
    alone = []
    for parts in itertools.permutations((first, second), 1):
        codebook = first["codebook"].float().requires_grad_()
        decode_tracked(layout, parts[0], {"codebook": codebook}).square().sum().backward()
        alone.append(codebook.grad)
    shared = first["codebook"].float().requires_grad_()
    total = sum(
        decode_tracked(layout, one, {"codebook": shared}).square().sum() for one in (first, second)
    )
    total.backward()
    torch.testing.assert_close(shared.grad, alone[0] + alone[1])
