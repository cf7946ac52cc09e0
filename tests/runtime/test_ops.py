"""The operators: what torch asks of an operator, gradients, compiled and exported graphs, life."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from torch import nn

from reallm_compiler.errors import FormatError
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.runtime import ops
from reallm_compiler.runtime.packed import PackedLinear
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import dense, distance, packed_matrix
from tests.plans import some_plan

PLAN = {
    "residual": {"kind": "low_rank", "rank": 2},
    "transform": [{"kind": "hadamard", "block": 16}],
    "scales": {"kind": "absmax", "per": "block", "block": 16},
    "quantizer": {"kind": "uniform", "bits": 4},
    "dora": True,
}
OPS = torch.ops.reallm


@pytest.fixture(scope="module")
def packed() -> PackedMatrix:
    made = packed_matrix(MatrixPlan.model_validate(PLAN), (48, 32))
    assert made is not None
    return made


def parts(packed: PackedMatrix) -> tuple[list[torch.Tensor], str]:
    return list(packed.sections.values()), packed.form.text


def test_torch_finds_nothing_wrong_with_them(packed: PackedMatrix) -> None:
    sections, form = parts(packed)
    x = torch.randn(3, 32, requires_grad=True)
    bias = torch.randn(48, requires_grad=True)
    torch.library.opcheck(OPS.linear.default, (x, sections, form, bias))
    torch.library.opcheck(OPS.linear.default, (torch.randn(32), sections, form, None))
    torch.library.opcheck(OPS.transposed.default, (torch.randn(2, 3, 48), sections, form))
    indices = torch.tensor([[1, 47], [0, 1]])
    torch.library.opcheck(OPS.embedding.default, (indices, sections, form, torch.float32))
    torch.library.opcheck(OPS.dequantize.default, (sections, form, torch.bfloat16))


def test_gradients(packed: PackedMatrix) -> None:
    sections, form = parts(packed)
    weight = dense(packed)
    x = torch.randn(2, 5, 32, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(48, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, bias: OPS.linear(x, sections, form, bias), (x, bias), atol=1e-4, fast_mode=True
    )
    OPS.linear(x, sections, form, bias).square().sum().backward()
    y = torch.nn.functional.linear(x, weight, bias).detach()
    assert distance(x.grad, 2 * y @ weight) < 1e-6
    assert distance(bias.grad, 2 * y.sum((0, 1))) < 1e-6


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_as_one_graph(packed: PackedMatrix, backend: str) -> None:
    torch._dynamo.reset()
    layer = PackedLinear.of(packed, dtype=torch.float32, bias=torch.randn(48))
    model = nn.Sequential(nn.Linear(32, 32), layer, nn.ReLU())
    x = torch.randn(3, 32)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    compiled(x).sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # torch copies what it has deprecated
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_holds_all_it_needs(packed: PackedMatrix, strict: bool) -> None:
    layer = PackedLinear.of(packed, dtype=torch.float32)
    x = torch.randn(3, 32)
    wanted = layer(x)
    program = torch.export.export(layer, (x,), strict=strict).run_decompositions()
    del layer
    assert "reallm.linear" in str(program.graph) or "aten.linear" in str(program.graph)
    assert torch.equal(program.module()(x), wanted)


def test_every_kind_through_the_operators() -> None:
    drawn, draw = 0, random.Random(5)
    while drawn < 3:
        packed = packed_matrix(some_plan(draw), (13, 8))
        if packed is None:
            continue
        drawn += 1
        sections, form = parts(packed)
        weight = dense(packed)
        x = torch.randn(2, 8)
        found = OPS.linear(x, sections, form, None)
        assert float((found - x.double() @ weight.t()).norm()) < 1e-5 * weight.norm() * x.norm()
        whole = OPS.dequantize(sections, form, torch.float32)
        assert float((whole - weight).norm()) < 1e-5 * weight.norm()


def test_a_product_is_made_once_and_goes_with_its_sections(packed: PackedMatrix) -> None:
    sections = [section.clone() for section in packed.sections.values()]
    form = packed.form.text
    first = ops.product_of(sections, form, torch.float32)
    assert ops.product_of(sections, form, torch.float32) is first
    assert ops.product_of(sections, form, torch.bfloat16) is not first
    gc.collect()
    before, alive = len(ops._kept), weakref.ref(first)
    del first, sections
    gc.collect()
    assert len(ops._kept) == before - 2
    assert alive() is None


def test_sections_that_are_written_to_are_looked_at_again(packed: PackedMatrix) -> None:
    sections = [section.clone() for section in packed.sections.values()]
    x = torch.randn(1, 32)
    before = OPS.linear(x, sections, packed.form.text, None)
    gain = list(packed.sections).index("gain")
    sections[gain].mul_(2)
    assert torch.allclose(OPS.linear(x, sections, packed.form.text, None), 2 * before, rtol=1e-3)
    sections[gain].fill_(float("nan"))
    with pytest.raises(FormatError, match="not a finite number"):
        OPS.linear(x, sections, packed.form.text, None)


def test_a_mask_of_too_many_columns_reaches_no_product() -> None:
    plan = {"quantizer": {"kind": "trellis", "bits": "5/2", "state_bits": 6, "paths": 4}}
    packed = packed_matrix(MatrixPlan.model_validate(plan), (8, 32))
    assert packed is not None
    sections, form = parts(packed)
    OPS.linear(torch.randn(1, 32), sections, form, None)
    mask = list(packed.sections).index("high_rate")
    sections[mask] = torch.full_like(sections[mask], 0xFF)
    with pytest.raises(FormatError, match="32 bits are set where 16 must be"):
        OPS.linear(torch.randn(1, 32), sections, form, None)


def test_the_direct_call_is_the_operator(packed: PackedMatrix) -> None:
    sections, form = parts(packed)
    x, bias = torch.randn(2, 3, 32), torch.randn(48)
    wanted = OPS.linear(x, sections, form, bias)
    assert torch.equal(ops.linear(x, sections, form, bias), wanted)
    followed = ops.linear(x.clone().requires_grad_(True), sections, form, bias)
    assert followed.requires_grad
    assert torch.equal(followed, wanted)
    with torch.no_grad():
        assert not ops.linear(x.clone().requires_grad_(True), sections, form, bias).requires_grad
    assert ops.linear(x, sections, form, bias.clone().requires_grad_(True)).requires_grad
    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda x: ops.linear(x, sections, form, bias)
    )(x)
    assert "reallm.linear" in traced.code


def test_indices_are_held_against_the_rows(packed: PackedMatrix) -> None:
    sections, form = parts(packed)
    for wrong in (48, -1):
        with pytest.raises(IndexError, match="48"):
            OPS.embedding(torch.tensor([0, wrong]), sections, form, torch.float32)
    assert OPS.embedding(
        torch.zeros(0, 2, dtype=torch.long), sections, form, torch.float32
    ).shape == (
        0,
        2,
        32,
    )


@pytest.mark.parametrize(
    "form",
    [
        "",
        "{}",
        "[1]",
        '{"plan": {}, "shape": [0, 1]}',
        '{"plan": {}, "shape": [Infinity, 1], "dtype": "f32", "column_gain": false}',
        "null",
    ],
)
def test_what_is_no_form(form: str, packed: PackedMatrix) -> None:
    with pytest.raises(FormatError):
        OPS.linear(torch.randn(1, 32), list(packed.sections.values()), form, None)
