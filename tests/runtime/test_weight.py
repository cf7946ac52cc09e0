"""A packed weight as a tensor: what stays packed, what decodes, what makes it dense."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.runtime import weight_ops
from reallm_compiler.runtime.packed import PackedEmbedding, PackedLinear
from reallm_compiler.runtime.weight import PackedWeight
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import dense, distance, packed_matrix
from tests.runtime.test_ops import PLAN


def matrix(shape: tuple[int, int], seed: int = 0) -> PackedMatrix:
    made = packed_matrix(MatrixPlan.model_validate(PLAN), shape, seed)
    assert made is not None
    return made


def weight_of(packed: PackedMatrix) -> tuple[PackedWeight, torch.Tensor]:
    return PackedWeight.of(packed, torch.float32), dense(packed, torch.float32)


@pytest.fixture
def never_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PackedWeight) -> torch.Tensor:
        raise AssertionError("the weight was decoded")

    monkeypatch.setattr(PackedWeight, "dequantize", refuse)


def test_products_run_from_the_codes(never_dense: None) -> None:
    packed = matrix((48, 32))
    weight, w = weight_of(packed)
    x, tall, bias = torch.randn(5, 32), torch.randn(5, 48), torch.randn(48)
    linear = torch.nn.functional.linear
    for found, wanted in (
        (linear(x, weight, bias), linear(x, w, bias)),
        (linear(x.view(1, 5, 32), weight), linear(x.view(1, 5, 32), w)),
        (x @ weight.t(), x @ w.t()),
        (x @ weight.mT, x @ w.mT),
        (tall @ weight, tall @ w),
        (torch.addmm(bias, x, weight.t()), torch.addmm(bias, x, w.t())),
        (torch.addmm(torch.ones(5, 48), x, weight.t()), x @ w.t() + 1),
        (nn.functional.embedding(torch.tensor([[3, 0]]), weight), w[[3, 0]][None]),
    ):
        assert distance(found, wanted) < 1e-4
        assert found.shape == wanted.shape


def test_rows_decode_alone(never_dense: None) -> None:
    weight, w = weight_of(matrix((48, 32)))
    for rows in (slice(3, 20), slice(-5, None), slice(None), slice(7, 7), slice(40, 99)):
        assert torch.equal(weight[rows], w[rows])


def test_gradients_reach_inputs(never_dense: None) -> None:
    weight, w = weight_of(matrix((48, 32)))
    x = torch.randn(2, 5, 32, requires_grad=True)
    torch.nn.functional.linear(x, weight).square().sum().backward()
    y = torch.nn.functional.linear(x, w).detach()
    assert distance(x.grad, 2 * y @ w) < 1e-4


def test_types_change_what_it_decodes_to_and_not_its_sections(never_dense: None) -> None:
    layer = PackedLinear.of(matrix((48, 32)), dtype=torch.float32, bias=torch.zeros(48))
    weight: Any = layer.weight
    before = [section.dtype for section in weight.value.pieces[0].sections]
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    weight = layer.weight
    assert [section.dtype for section in weight.value.pieces[0].sections] == before
    assert layer(torch.randn(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_it_has_no_product_for_decodes() -> None:
    weight, w = weight_of(matrix((48, 32)))
    assert torch.equal(weight + 0, w)
    assert torch.equal(weight[::2], w[::2])
    assert torch.equal(weight.t()[3:5], w.t()[3:5])
    assert torch.equal(torch.linalg.vector_norm(weight, dim=1), torch.linalg.vector_norm(w, dim=1))
    assert weight.packed


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_written_to_it_is_dense(safe: bool, flipped: bool) -> None:
    """As peft merges: `weight.data += delta`, or a clone that takes its place."""
    weight, w = weight_of(matrix((48, 32)))
    parameter: Any = nn.Parameter(weight.t() if flipped else weight, requires_grad=False)
    w = w.t() if flipped else w
    kept = copy.deepcopy(parameter)
    delta = torch.randn(w.shape)
    if safe:
        merged = parameter.data.clone()
        merged += delta
        parameter.data = merged
    else:
        parameter.data += delta
    assert not parameter.packed
    assert torch.allclose(parameter.dequantize(), w + delta, atol=1e-5)
    x = torch.randn(3, w.shape[1])
    assert torch.allclose(torch.nn.functional.linear(x, parameter), x @ (w + delta).t(), atol=1e-4)
    assert kept.packed
    assert torch.equal(kept.dequantize(), w)


def test_experts(never_dense: None) -> None:
    """Stacks of joined matrices: an expert that is not asked for is not read."""
    pairs = [weight_of(matrix((16, 32), seed)) for seed in range(6)]
    gates, ups = pairs[:3], pairs[3:]
    stack = torch.cat([torch.stack([one for one, _ in part]) for part in (gates, ups)], dim=1)
    wanted = torch.stack([torch.cat([g, u]) for (_, g), (_, u) in zip(gates, ups, strict=True)])
    assert stack.shape == (3, 32, 32)
    x = torch.randn(4, 32)
    one = stack[torch.tensor(1)]
    assert isinstance(one, PackedWeight)
    assert len(one.value.pieces) == 2
    assert distance(torch.nn.functional.linear(x, one), x @ wanted[1].t()) < 1e-4
    many = torch.randn(3, 4, 32)
    assert distance(torch.bmm(many, stack.mT), torch.bmm(many, wanted.mT)) < 1e-4
    assert distance(torch.bmm(many, stack), torch.bmm(many, wanted)) < 1e-4


def test_a_mixed_stack_decodes() -> None:
    (one, w), other = weight_of(matrix((16, 32))), torch.randn(16, 32)
    assert torch.equal(torch.stack([one, other]), torch.stack([w, other]))
    assert torch.equal(torch.cat([one, other], 1), torch.cat([w, other], 1))


def test_a_tied_head_shares_the_codes() -> None:
    packed = matrix((48, 32))
    embedding = PackedEmbedding.of(packed, dtype=torch.float32)
    head = PackedLinear.of(packed, dtype=torch.float32)
    head.weight = embedding.weight
    w = dense(packed, torch.float32)
    assert torch.equal(embedding(torch.tensor([1, 47])), w[[1, 47]])
    assert distance(head(torch.eye(32)), w.t()) < 1e-4


def test_saved_and_read_back() -> None:
    layer = PackedLinear.of(matrix((48, 32)), dtype=torch.bfloat16)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert again.weight.packed
    x = torch.randn(2, 32, dtype=torch.bfloat16)
    assert torch.equal(again(x), layer(x))


def test_every_handler_is_of_an_operator_of_torch() -> None:
    assert all(isinstance(one, torch._ops.OpOverload) for one in weight_ops.HANDLERS)
