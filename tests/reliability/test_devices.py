"""Codecs on an accelerator that is not there: every tensor knows on which side it lives.

A tensor here says that it is on another device (`meta`, the one that needs no driver) while its
numbers lie in ordinary memory. An operation that mixes the two sides is refused, as CUDA would
refuse it, and so is reading such a tensor by numpy. All that a codec does only on an accelerator
is run this way. What it cannot show - that kernels are deterministic, how fast they are - the
tests marked below and benchmarks/gpu.py show where a CUDA device is at hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from reallm_compiler.codecs import decode_matrix, encode_matrix, fit_shared
from reallm_compiler.recipe import Candidate, load_recipe, resolve
from reallm_compiler.stages import MatrixPlan

ELSEWHERE = torch.device("meta")

aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}
"""Operations that carry numbers from one side to the other."""
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""Operations whose indices may lie on the CPU."""


class Remote(torch.Tensor):
    """A tensor that says it is elsewhere; `held` are its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Remote:
        made: Remote = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, call: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return across(call, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Remote({list(self.shape)})"


class MixedError(RuntimeError):
    """An operation met tensors of both sides."""


class Accelerator(TorchDispatchMode):
    """While it is on, tensors can be made elsewhere and worked with there."""

    def __torch_dispatch__(  # type: ignore[override]
        self, call: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return across(call, args, kwargs or {})


def across(call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One operation: on the numbers, with a look at the sides first and a new side after."""
    looked_at = args[:1] if call in INDEXING else (args, kwargs)
    tensors = [x for x in tree_flatten(looked_at)[0] if isinstance(x, torch.Tensor)]
    remote = [x for x in tensors if isinstance(x, Remote)]
    local = [x for x in tensors if not isinstance(x, Remote) and x.dim()]
    if remote and local and call not in CROSSING:
        raise MixedError(f"{call} met tensors of both devices")
    where = kwargs.get("device")
    away = bool(remote) if where is None else torch.device(where) == ELSEWHERE
    if call is aten.copy_.default:
        away = isinstance(args[0], Remote)
    plain = {key: "cpu" if key == "device" else value for key, value in kwargs.items()}
    result = call(*tree_map(held, args), **tree_map(held, plain))
    if not away:
        return result
    return tree_map(lambda x: Remote(x) if isinstance(x, torch.Tensor) else x, result)


def held(value: Any) -> Any:
    return value.held if isinstance(value, Remote) else value


def plan_of(defaults: Mapping[str, Any]) -> MatrixPlan:
    recipe = load_recipe({"reallm": 1, "defaults": defaults})
    candidate = Candidate(name="m", layer=None, is_matrix=True, coded_by_default=True)
    plan = resolve(recipe, [candidate])["m"].plan
    assert plan is not None
    return plan


RMS = {"kind": "rms"}
BLOCKS = {"kind": "absmax", "per": "block", "block": 16, "bits": 8, "superblock": 16}
HNERV = {
    "kind": "hnerv",
    "patch": 8,
    "latent": [2, 2, 2],
    "width": 4,
    "min_width": 2,
    "kernel_max": 3,
    "encoder_width": 4,
    "epochs": 4,
    "batch": 8,
}
PLANS = {
    "stored": {},
    "trained": {"transform": [{"kind": "normalize"}], "autoencoder": {**HNERV, "qat": False}},
    "trained, one decoder, vectors": {
        "autoencoder": HNERV,
        "scales": BLOCKS,
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
        "share": "all",
    },
    "uniform": {"scales": BLOCKS, "quantizer": {"kind": "uniform", "bits": 3}},
    "uniform, minmax": {
        "scales": {"kind": "minmax", "per": "block", "block": 16},
        "quantizer": {"kind": "uniform", "bits": 4},
    },
    "normal float": {"scales": BLOCKS, "quantizer": {"kind": "normal_float", "bits": 4}},
    "vectors of columns": {
        "scales": BLOCKS,
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4, "axis": "cols"},
    },
    "vectors of rows, ragged, ordered": {
        "residual": {"kind": "low_rank", "rank": 3},
        "permutation": {"kind": "nearest", "rows": 12},
        "scales": BLOCKS,
        "quantizer": {"kind": "vq", "bits": 2, "dim": 4},
        "dora": True,
    },
    "scalars of a codebook": {"scales": RMS, "quantizer": {"kind": "vq", "bits": 3, "dim": 1}},
    "alternating, int8": {
        "residual": {"kind": "low_rank", "rank": 2, "fit": "alternating", "dtype": "int8"},
        "scales": BLOCKS,
        "quantizer": {"kind": "uniform", "bits": 2},
    },
    "outliers and monarch": {
        "residual": [
            {"kind": "sparse", "fraction": "1/20", "rows": 16},
            {"kind": "monarch", "dtype": "int8"},
        ],
        "scales": BLOCKS,
        "quantizer": {"kind": "uniform", "bits": 3},
    },
    "points of a lattice": {"scales": RMS, "quantizer": {"kind": "e8p", "bits": 3}},
    "sums of words": {
        "scales": RMS,
        "quantizer": {"kind": "additive", "code_bits": 4, "dim": 4, "iterations": 3},
    },
    "shared": {"scales": RMS, "quantizer": {"kind": "vq", "bits": 2, "dim": 2}, "share": "all"},
}


def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(38, 50, generator=generator)


def there_and_back(plan: MatrixPlan, given: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Code a matrix where it lies, decode it there; the error, and the result on the CPU."""
    shared = fit_shared([plan], [given], seed=1) if plan.share else None
    made = encode_matrix(plan, given, seed=2, source_dtype="f32", shared=shared)
    sections = {**made.sections, **(shared or {})}
    decoded = decode_matrix(plan, (38, 50), "f32", sections, dtype=torch.float32)
    assert decoded.device.type == given.device.type
    return made.relative_error, decoded.cpu()


@pytest.mark.parametrize("defaults", PLANS.values(), ids=PLANS.keys())
def test_no_codec_mixes_devices(defaults: Mapping[str, Any]) -> None:
    plan = plan_of(defaults)
    error, _ = there_and_back(plan, weight())
    with Accelerator():
        error_there, decoded = there_and_back(plan, Remote(weight()))
    assert error_there == pytest.approx(error, rel=0.05, abs=1e-7)
    measured = (weight() - decoded).norm() / weight().norm()
    assert float(measured) == pytest.approx(error_there, rel=1e-4, abs=1e-7)


def test_mixing_is_seen() -> None:
    """The accelerator that is not there refuses what CUDA refuses."""
    with Accelerator():
        there = Remote(torch.ones(3))
        assert (there + 1).device == ELSEWHERE
        assert torch.equal(there.cpu(), torch.ones(3))
        assert torch.zeros(2, device=ELSEWHERE).add_(1).cpu().tolist() == [1, 1]
        with pytest.raises(MixedError):
            there + torch.ones(3)
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("defaults", PLANS.values(), ids=PLANS.keys())
def test_the_same_error_on_cuda(
    defaults: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    )
    plan = plan_of(defaults)
    error, _ = there_and_back(plan, weight())
    torch.use_deterministic_algorithms(True)
    try:
        error_there, first = there_and_back(plan, weight().cuda())
        _, again = there_and_back(plan, weight().cuda())
    finally:
        torch.use_deterministic_algorithms(False)
    assert error_there == pytest.approx(error, rel=0.05, abs=1e-7)
    assert torch.equal(first, again)


def test_the_study_says_that_there_is_no_device() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr
