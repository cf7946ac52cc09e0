"""The Triton kernels on a CUDA device: each form against the dense decode (`pytest -m gpu`)."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.kernels.choose import product_for
from reallm_compiler.kernels.triton_product import TritonProduct
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import dense, distance, packed_matrix
from tests.kernels.triton_cases import CASES

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("torch reports no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed (the extra `triton`)")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_those_of_the_dense_matrix(name: str, dtype: torch.dtype) -> None:
    plan, shape = CASES[name]
    made = packed_matrix(MatrixPlan.model_validate(plan), shape)
    assert made is not None
    sections = [made.sections[spec.role].cuda() for spec in made.form.specs]
    packed = made.form.with_sections(sections)
    product = product_for(packed, packed.device, dtype)
    assert isinstance(product, TritonProduct)
    weight, bound = dense(made), max(5e-5, 4 * torch.finfo(dtype).eps)
    for inputs in (1, 3, 8, 9, 64):
        x = torch.randn(inputs, shape[1]).to(dtype)
        y = product.linear(x.cuda())
        assert y.dtype == dtype
        assert distance(y.cpu(), x.double() @ weight.t()) < bound, inputs
        assert torch.equal(y, product.linear(x.cuda())), inputs
