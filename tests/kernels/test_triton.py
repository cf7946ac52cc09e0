"""The Triton kernels in Triton's interpreter, on the CPU: each form against the dense decode.

The interpreter is chosen when triton is imported: `make triton` runs this file in a process of its
own.
"""

from __future__ import annotations

import os

import pytest
import torch

from reallm_compiler.kernels import triton_product as module
from reallm_compiler.kernels.choose import product_for
from reallm_compiler.kernels.triton_product import TritonProduct, triton_product
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import dense, distance, packed_matrix
from tests.kernels.triton_cases import CASES

pytestmark = pytest.mark.triton
pytest.importorskip("triton", reason="triton is not installed (the extra `triton`)")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1, as `make triton` sets it", allow_module_level=True)

CPU = torch.device("cpu")


def product_of(name: str, dtype: torch.dtype, **more: bool) -> tuple[TritonProduct, torch.Tensor]:
    plan, shape = CASES[name]
    packed = packed_matrix(MatrixPlan.model_validate(plan), shape, **more)
    assert packed is not None
    product = triton_product(packed, CPU, dtype)
    assert product is not None
    return product, dense(packed)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inputs", [1, 3, 9])
def test_products_are_those_of_the_dense_matrix(name: str, inputs: int) -> None:
    product, weight = product_of(name, torch.float32)
    x = torch.randn(inputs, weight.shape[1], generator=torch.Generator().manual_seed(inputs))
    assert distance(product.linear(x), x.double() @ weight.t()) < 5e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [1, 9])
def test_types_of_activations(dtype: torch.dtype, inputs: int) -> None:
    product, weight = product_of("trellis of two widths", dtype, column_gain=True)
    x = torch.randn(inputs, weight.shape[1]).to(dtype)
    y = product.linear(x)
    assert y.dtype == dtype
    assert distance(y, x.double() @ weight.t()) < torch.finfo(dtype).eps


def test_more_inputs_than_one_program_takes() -> None:
    product, weight = product_of("vectors of 2, factors of bytes", torch.float32)
    x = torch.randn(7, weight.shape[1])
    assert distance(product.linear(x), x.double() @ weight.t()) < 5e-5


def test_columns_are_divided_among_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    product, weight = product_of("trellis, longer than a block", torch.float32)
    x = torch.randn(2, weight.shape[1])
    monkeypatch.setattr(module, "PROGRAMS", 1)
    whole = product.linear(x)
    monkeypatch.setattr(module, "PROGRAMS", 64)
    divided = product.linear(x)
    assert not torch.equal(whole, divided)  # other sums are rounded
    assert distance(divided, x.double() @ weight.t()) < 5e-5


def test_several_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PANEL", 1)
    name = "vectors of 4, orders of columns, scales in bytes, factors and gains"
    product, weight = product_of(name, torch.float32)
    x = torch.randn(9, weight.shape[1])
    assert distance(product.linear(x), x.double() @ weight.t()) < 5e-5


def test_no_inputs() -> None:
    product, weight = product_of("bytes", torch.float32)
    assert product.linear(torch.empty(0, weight.shape[1])).shape == (0, weight.shape[0])


def test_gradients_and_rows() -> None:
    product, weight = product_of("bytes", torch.float32)
    g = torch.randn(2, weight.shape[0])
    assert distance(product.transposed(g), g.double() @ weight) < 1e-6
    assert distance(product.rows(torch.tensor([3, 0])), weight[[3, 0]]) < 1e-6


def test_products_are_chosen_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, shape = CASES["bytes"]
    packed = packed_matrix(MatrixPlan.model_validate(plan), shape)
    assert packed is not None
    monkeypatch.setattr(
        "reallm_compiler.kernels.choose.MAKERS", [("cuda", None), ("cpu", triton_product)]
    )
    assert isinstance(product_for(packed, CPU, torch.float32), TritonProduct)
