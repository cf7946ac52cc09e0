"""The Triton kernels compiled for GPUs, without one: registers, spills, widths of loads.

A product is taken as on a device, but its kernels are compiled instead of launched, with what
Triton knows of their arguments in a true launch. Triton's own `ptxas` and `cuobjdump` do the rest.
Nothing here says how fast they are.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reallm_compiler.kernels.triton_product import triton_product
from reallm_compiler.stages import MatrixPlan
from tests.kernels.packing import packed_matrix
from tests.kernels.triton_cases import CASES

pytestmark = pytest.mark.triton
triton = pytest.importorskip("triton", reason="triton is not installed (the extra `triton`)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("in the interpreter nothing is compiled", allow_module_level=True)

ARCHITECTURES = (80, 86, 90)

MOST_REGISTERS = 168
"""Of a thread: three programs of four warps fit on a multiprocessor with 65536."""

FORMS = {
    "vectors of 4, orders of columns, scales in bytes, factors and gains": {"b8", "b16", "b32"},
    "trellis of two widths": {"b16", "b32"},
    "wide codes of a computed trellis": {"b32"},
    "4 bits with zero points": {"b16", "b32"},
}
"""Widths of loads up to 32 bits: bytes are scales, 16 bits are scales and tables, never codes."""


@pytest.fixture(params=ARCHITECTURES)
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """Compiled kernels by name, filled as a product is taken."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = GPUTarget("cuda", request.param, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: request.param,  # compiled kernels are kept by device
            get_current_stream=lambda device: 0,
        )
    )
    found: dict[str, Any] = {}

    def compile_it(kernel: Any, grid: object) -> Any:
        def launch(*args: object, **options: object) -> None:
            found[kernel.fn.__name__] = kernel.run(*args, grid=grid, warmup=True, **options)

        return launch

    monkeypatch.setattr(jit.KernelInterface, "__getitem__", compile_it)
    yield found
    driver._active = None  # `reset_active` would look for a device


def resources(kernel: Any, folder: Path) -> dict[str, int]:
    """What `cuobjdump` reports of a kernel: registers, bytes of stack and local memory, ..."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [tool, "--dump-resource-usage", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(count) for name, count in re.findall(r"([A-Z]+):(\d+)", text)}


def load_widths(kernel: Any) -> set[str]:
    """Widths of loads from global memory in a kernel's PTX."""
    return {
        "x".join(part for part in found if part)
        for found in re.findall(
            r"ld\.global(?:\.(?!v|b)\w+)*(?:\.(v[24]))?\.(b\d+)", kernel.asm["ptx"]
        )
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inputs", [1, 8, 9])
def test_kernels_fit(form: str, inputs: int, compiled: dict[str, Any], tmp_path: Path) -> None:
    plan, shape = CASES[form]
    packed = packed_matrix(MatrixPlan.model_validate(plan), shape)
    assert packed is not None
    product = triton_product(packed, torch.device("cpu"), torch.float16)
    assert product is not None
    product.linear(torch.zeros(inputs, shape[1], dtype=torch.float16))
    main = "product" if inputs <= 8 else "panel"
    assert {main, "finish"} <= set(compiled)
    for name, kernel in compiled.items():
        used = resources(kernel, tmp_path)
        print(form, inputs, name, used["REG"], used["SHARED"])
        assert used["REG"] <= MOST_REGISTERS, name
        assert (used["STACK"], used["LOCAL"]) == (0, 0), name  # nothing is spilled
    assert load_widths(compiled[main]) - {"v2xb32", "v4xb32"} <= FORMS[form]


@pytest.mark.parametrize("inputs", [1, 9])
def test_extents_of_one(inputs: int, compiled: dict[str, Any]) -> None:
    """Triton compiles arguments that are 1 as constants."""
    plan = {
        "residual": {"kind": "low_rank", "rank": 1},
        "scales": {"kind": "absmax", "per": "row"},
        "quantizer": {"kind": "uniform", "bits": 8},
    }
    packed = packed_matrix(MatrixPlan.model_validate(plan), (1, 16))
    assert packed is not None
    product = triton_product(packed, torch.device("cpu"), torch.float16)
    assert product is not None
    product.linear(torch.zeros(inputs, 16, dtype=torch.float16))
    assert "finish" in compiled
