"""What the Triton kernels are given, on a device that is not there, and what they are not given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from reallm_compiler.kernels import triton_product as module
from reallm_compiler.kernels.triton_form import Codes
from reallm_compiler.kernels.triton_product import TritonProduct, triton_product
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import packed_matrix
from tests.kernels.triton_cases import CASES
from tests.reliability.test_devices import ELSEWHERE, Accelerator, Remote

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def triton_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda: True)


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a value of dataclasses."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return [
            one
            for field in dataclasses.fields(value)
            for one in tensors(getattr(value, field.name))
        ]
    return []


@pytest.mark.parametrize("name", CASES)
def test_all_lies_on_the_device(name: str) -> None:
    plan, shape = CASES[name]
    made = packed_matrix(MatrixPlan.model_validate(plan), shape, column_gain=True)
    assert made is not None
    there = made.form.with_sections([Remote(made.sections[spec.role]) for spec in made.form.specs])
    with Accelerator():
        product = triton_product(there, ELSEWHERE, torch.float16)
    assert isinstance(product, TritonProduct)
    given = [*tensors(product._codes), *tensors(product._inputs), *tensors(product._outputs)]
    assert len(given) > 8
    assert all(isinstance(one, Remote) for one in given)


UNKNOWN: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "vectors along rows": (
        {
            "scales": {"kind": "rms", "per": "row"},
            "quantizer": {"kind": "vq", "bits": 2, "dim": 4, "axis": "cols"},
        },
        (20, 64),
    ),
    "vectors of three": (
        {
            "scales": {"kind": "rms", "per": "row"},
            "quantizer": {"kind": "vq", "bits": 2, "dim": 3},
        },
        (21, 64),
    ),
    "blocks of scales that cut groups": (
        {
            "scales": {"kind": "absmax", "per": "block", "block": 24},
            "quantizer": {"kind": "uniform", "bits": 4},
        },
        (20, 48),
    ),
    "residuals without factors": (
        {
            "residual": [{"kind": "sparse", "fraction": "1/16"}],
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 4},
        },
        (20, 64),
    ),
    "scales of blocks before a rotation": (
        {
            "transform": [{"kind": "normalize", "per": "block", "block": 16}],
            "scales": {"kind": "rms", "per": "tensor"},
            "quantizer": {"kind": "vq", "bits": 2, "dim": 4},
        },
        (20, 64),
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_kernel(name: str) -> None:
    plan, shape = UNKNOWN[name]
    packed = packed_matrix(MatrixPlan.model_validate(plan), shape)
    assert packed is not None
    assert triton_product(packed, CPU, torch.float32) is None


def test_float64_has_no_kernel() -> None:
    plan, shape = CASES["bytes"]
    packed = packed_matrix(MatrixPlan.model_validate(plan), shape)
    assert packed is not None
    assert triton_product(packed, CPU, torch.float64) is None
    assert isinstance(triton_product(packed, CPU, torch.float32), TritonProduct)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda: False)
    plan, shape = CASES["bytes"]
    packed = packed_matrix(MatrixPlan.model_validate(plan), shape)
    assert packed is not None
    assert triton_product(packed, CPU, torch.float32) is None


def test_codes_are_not_copied() -> None:
    plan, shape = CASES["4 bits with zero points"]
    packed = packed_matrix(MatrixPlan.model_validate(plan), shape)
    assert packed is not None
    product = triton_product(packed, CPU, torch.float32)
    assert product is not None
    codes: Codes = product._codes
    assert codes.words.data_ptr() == packed.sections["codes"].data_ptr()
    assert codes.scales.values.data_ptr() == packed.sections["scales"].data_ptr()
