"""The plain path: every kind, the same numbers as the dense decode up to rounding."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from reallm_compiler.kernels.choose import MAKERS, only_plain, product_for
from reallm_compiler.kernels.plain import PlainProduct
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import dense, distance, packed_matrix
from tests.plans import some_plan

CPU = torch.device("cpu")
SHAPES = st.sampled_from([(1, 1), (1, 7), (13, 6), (33, 20), (64, 48)])


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(draw=st.integers(0, 2**32 - 1), shape=SHAPES, column_gain=st.booleans())
def test_any_stages_together(draw: int, shape: tuple[int, int], column_gain: bool) -> None:
    plan = some_plan(random.Random(draw))
    note(f"plan: {plan.plain()}")
    packed = packed_matrix(plan, shape, column_gain=column_gain)
    if packed is None:
        return
    weight, (p, q) = dense(packed), shape
    with only_plain():
        product = product_for(packed, CPU, torch.float32)
    generator = torch.Generator().manual_seed(draw)
    x, g = torch.randn(3, q, generator=generator), torch.randn(3, p, generator=generator)
    # Errors are held against the size of what was added: sums of large terms may cancel.
    scale = float(weight.norm()) + 1e-30
    assert float((product.linear(x) - x.double() @ weight.t()).norm()) < 1e-5 * scale * x.norm()
    assert float((product.transposed(g) - g.double() @ weight).norm()) < 1e-5 * scale * g.norm()
    rows = torch.tensor([p - 1, 0, p // 2, 0])
    assert float((product.rows(rows) - weight[rows]).norm()) < 1e-5 * scale
    some = range(p // 3, p)
    assert float((product.rows(some) - weight[p // 3 :]).norm()) < 1e-5 * scale


HADAMARD = {
    "transform": [{"kind": "hadamard", "block": 16}],
    "scales": {"kind": "rms", "per": "row"},
    "quantizer": {"kind": "uniform", "bits": 4},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_types_of_activations(dtype: torch.dtype) -> None:
    packed = packed_matrix(MatrixPlan.model_validate(HADAMARD), (48, 32))
    assert packed is not None
    product = PlainProduct(packed, dtype)
    x = torch.randn(5, 32, dtype=dtype)
    y = product.linear(x)
    assert y.dtype == dtype
    assert y.shape == (5, 48)
    bound = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
    assert distance(y, x.double() @ dense(packed).t()) < bound[dtype]
    assert product.linear(x[:0]).shape == (0, 48)


def test_the_matrix_is_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of a product is a panel, though the matrix has several."""
    monkeypatch.setattr("reallm_compiler.codecs.latent.PANEL", 1 << 10)
    packed = packed_matrix(MatrixPlan.model_validate(HADAMARD), (256, 64))
    assert packed is not None
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for one in torch.utils._pytree.tree_leaves(result):
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return result

    product = PlainProduct(packed, torch.float32)
    with Watch():
        product.linear(torch.randn(2, 64))
        product.transposed(torch.randn(2, 256))
    stored = packed.sections["codes"].numel()
    assert largest <= max(2 << 10, stored) < 256 * 64


def test_a_maker_is_asked_first_and_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_matrix(MatrixPlan.model_validate(HADAMARD), (48, 32))
    assert packed is not None
    made = object()
    asked: list[str] = []

    def maker(name, product):  # type: ignore[no-untyped-def]
        def make(*args):  # type: ignore[no-untyped-def]
            asked.append(name)
            return product

        return make

    monkeypatch.setattr(
        "reallm_compiler.kernels.choose.MAKERS",
        [("cuda", maker("cuda", made)), ("cpu", maker("no", None)), ("cpu", maker("yes", made))],
    )
    assert product_for(packed, CPU, torch.float32) is made
    assert asked == ["no", "yes"]
    with only_plain():
        assert isinstance(product_for(packed, CPU, torch.float32), PlainProduct)
    assert isinstance(MAKERS, list)
