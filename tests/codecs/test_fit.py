"""A matrix that learns begins as it was coded, and its gradients are those of what it stores."""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from reallm_compiler.codecs import decode_matrix, encode_matrix
from reallm_compiler.codecs.fit import LearnedMatrix
from reallm_compiler.codecs.sections import check_sections
from reallm_compiler.errors import CodecError
from reallm_compiler.planning.fit import learnable_in
from reallm_compiler.stages import Learnable, MatrixPlan
from reallm_compiler.storage.matrix import layout_of
from tests.codecs.size_law import REFUSALS, some_statistics
from tests.plans import some_plan

SHAPE = (24, 48)
UNIFORM = {"kind": "uniform", "bits": 3}
AFFINE = {"kind": "affine", "per": "block", "block": 16, "code_bits": 3, "dtype": "float16"}
PLANS: dict[str, dict[str, Any]] = {
    "affine": {"scales": AFFINE},
    "symmetric": {"scales": {**AFFINE, "symmetric": True}},
    "minmax": {"scales": {"kind": "minmax", "per": "row", "dtype": "float16"}},
    "absmax": {"scales": {"kind": "absmax", "per": "column"}},
    "normal float": {
        "scales": {"kind": "absmax", "per": "block", "block": 16},
        "quantizer": {"kind": "normal_float", "bits": 3},
    },
    "all stages": {
        "residual": [{"kind": "low_rank", "rank": 2}],
        "transform": [
            {"kind": "normalize", "per": "row", "bits": None},
            {"kind": "hadamard", "block": 8},
        ],
        "permutation": {"kind": "nearest", "rows": 8},
        "scales": {"kind": "minmax", "per": "block", "block": 16, "dtype": "float16"},
        "dora": True,
    },
}


def started_matrix(
    name: str, learn: list[Learnable]
) -> tuple[LearnedMatrix, dict[str, Tensor], Any]:
    plan = MatrixPlan.model_validate({"quantizer": UNIFORM, **PLANS[name]})
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    sections = encode_matrix(plan, weight, seed=1, source_dtype="f32").sections
    layout = layout_of(plan, SHAPE, "f32")
    return LearnedMatrix(layout, weight, sections, learn), sections, layout


def whole(layout: Any, sections: dict[str, Tensor]) -> Tensor:
    return decode_matrix(layout.plan, SHAPE, "f32", sections, dtype=torch.float32, layout=layout)


@pytest.mark.parametrize("name", PLANS)
def test_it_begins_as_it_was_coded(name: str) -> None:
    names: list[Learnable] = ["clip"] if name == "normal float" else ["rounding", "clip"]
    matrix, sections, layout = started_matrix(name, names)
    stored = matrix.sections()
    assert stored.keys() == sections.keys()
    assert all(torch.equal(stored[role], sections[role]) for role in sections)
    assert torch.allclose(matrix().detach(), whole(layout, sections), rtol=0, atol=1e-6)
    assert {learnable for _, learnable, _ in matrix.learned()} == set(names)


@pytest.mark.parametrize("name", PLANS)
def test_what_it_stores_is_what_it_computes(name: str) -> None:
    names: list[Learnable] = ["rounding", "clip", "factors", "magnitudes"]
    matrix, _, layout = started_matrix(name, names)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, learnable, parameter in matrix.learned():
            noise = torch.rand(parameter.shape, generator=generator)
            parameter.add_(-0.3 * noise if learnable == "clip" else 0.8 * (noise - 0.5))
        matrix.project_()
    sections = matrix.sections()
    assert torch.allclose(matrix().detach(), whole(layout, sections), rtol=0, atol=1e-5)


def test_factors_of_a_transform_move_the_latent_too() -> None:
    """Held or made anew, codes are of the matrix as the factors that are stored transform it."""
    matrix, sections, layout = started_matrix("all stages", ["rounding", "channel_scale"])
    learned = {name: parameter.requires_grad_() for name, _, parameter in matrix.learned()}
    (role,) = learned.keys() - {"rounding"}
    matrix().square().sum().backward()
    gradient = learned[role].grad
    assert gradient is not None
    assert bool((gradient != 0).all())
    with torch.no_grad():
        learned[role].mul_(1.05)
    stored = matrix.sections()
    assert not torch.equal(stored[role], sections[role])
    close = torch.allclose(matrix().detach(), whole(layout, stored), rtol=0, atol=1e-5)
    assert close
    near = torch.allclose(whole(layout, stored), whole(layout, sections), rtol=0, atol=0.7)
    assert near


def test_offsets_pass_gradients_inside_the_range_alone() -> None:
    matrix, sections, _ = started_matrix("minmax", ["rounding"])
    (parameter,) = [one for _, _, one in matrix.learned()]
    step = sections["scales"].float()[:, None] / 7  # one scale for each row
    matrix().sum().backward()
    assert parameter.grad is not None
    inside = parameter.grad != 0
    assert inside.float().mean() > 0.9
    assert torch.allclose(parameter.grad, torch.where(inside, step, 0.0), rtol=1e-5)


def test_the_range_is_clipped_down_a_gradient() -> None:
    """The gradient of a clipped end: by how much the levels that reach to it move."""
    matrix, _, _ = started_matrix("absmax", ["clip"])
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    (clip,) = [one for _, _, one in matrix.learned()]
    errors = []
    for _ in range(60):
        error = (matrix() - weight).square().mean()
        errors.append(float(error.detach()))
        error.backward()
        with torch.no_grad():
            clip.sub_(clip.grad, alpha=0.5)
            clip.grad = None
        matrix.project_()
    assert errors[-1] < 0.97 * errors[0]
    assert float(clip.detach().max()) <= 1


LEARNABLE: tuple[Learnable, ...] = get_args(Learnable)


@settings(max_examples=60)
@given(draw=st.integers(0, 2**32 - 1), held=st.booleans())
@example(draw=3969, held=False)  # learned scales of a transform, then learned gains
@example(draw=30499954, held=False)  # outliers fitted anew after the ends of ranges were found
def test_any_stages_learn_what_they_store(draw: int, held: bool) -> None:
    """Over all kinds: it begins as it was coded, and what it stores keeps the size law."""
    plan = some_plan(random.Random(draw), share=None)
    layout = layout_of(plan, (33, 20), "f32")
    if plan.autoencoder.trained or layout.refusal is not None:
        return
    note(f"plan: {plan.plain()}")
    left_out = {"rounding", "clip"} if held else {"codebooks", "scales"}
    names = [learnable for learnable in LEARNABLE if learnable not in left_out]
    weight = torch.randn(33, 20, generator=torch.Generator().manual_seed(draw))
    try:
        sections = encode_matrix(
            plan, weight, seed=1, source_dtype="f32", statistics=some_statistics((33, 20), 1)
        ).sections
    except CodecError as error:
        if not any(text in error.message for text in REFUSALS):
            raise
        return  # a type is too narrow for what it would hold
    matrix = LearnedMatrix(layout, weight, sections, names)
    learning = {learnable for _, learnable, _ in matrix.learned()}
    assert learning == set(learnable_in(layout, names))
    matrix.project_()
    stored = {spec.role: matrix.sections()[spec.role] for spec in layout.own_sections}
    check_sections(stored, layout.own_sections)
    before = decode_matrix(plan, (33, 20), "f32", sections, dtype=torch.float32)
    after = decode_matrix(plan, (33, 20), "f32", stored, dtype=torch.float32)
    near = 1e-5 * float(before.abs().max()) + 1e-6
    assert torch.allclose(after, before, rtol=0, atol=near)
    for _, _, parameter in matrix.learned():
        parameter.requires_grad_()
    made = matrix()
    assert torch.allclose(made.detach(), after, rtol=0, atol=near)
    if learning:
        made.square().sum().backward()
        for name, _, parameter in matrix.learned():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
