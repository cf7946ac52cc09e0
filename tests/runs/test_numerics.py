"""Numerical settings: fixed meanwhile, and all of them put back, whatever they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reallm_compiler.runs.numerics import CUBLAS_WORKSPACE, fixed_numerics

MODE: Any = torch.utils.deterministic


def settings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": MODE.fill_uninitialized_memory,
        "precision": torch.get_float32_matmul_precision(),
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get(CUBLAS_WORKSPACE),
    }


def apply(values: dict[str, Any]) -> None:
    torch.set_num_threads(values["threads"])
    torch.use_deterministic_algorithms(values["deterministic"], warn_only=values["warn_only"])
    MODE.fill_uninitialized_memory = values["fill"]
    torch.backends.cuda.matmul.allow_tf32 = values["matmul_tf32"]
    torch.backends.cudnn.allow_tf32 = values["cudnn_tf32"]
    torch.backends.cudnn.benchmark = values["benchmark"]
    torch.set_float32_matmul_precision(values["precision"])
    os.environ.pop(CUBLAS_WORKSPACE, None)
    if values["workspace"] is not None:
        os.environ[CUBLAS_WORKSPACE] = values["workspace"]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = settings()
    yield
    apply(before)


CALLERS = [
    {},
    {"threads": 2, "fill": False, "cudnn_tf32": False},
    {"deterministic": True, "warn_only": True, "benchmark": True},
    {"precision": "high", "matmul_tf32": True},
    {"precision": "medium", "matmul_tf32": True, "workspace": ":16:8"},
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("own", CALLERS, ids=str)
@pytest.mark.parametrize("fails", [False, True])
def test_all_settings_come_back(own: dict[str, Any], device: str, fails: bool) -> None:
    plain = {"threads": 1, "deterministic": False, "warn_only": False, "fill": True}
    flags = {"precision": "highest", "matmul_tf32": False, "cudnn_tf32": True, "benchmark": False}
    apply({**plain, **flags, "workspace": None, **own})
    before = settings()
    try:
        with fixed_numerics(3, torch.device(device)):
            inside = settings()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert settings() == before
    fixed = {"threads": 3, "deterministic": True, "warn_only": False, "fill": False}
    assert inside.items() >= {**fixed, "precision": "highest", "matmul_tf32": False}.items()
    if device == "cuda":
        assert not inside["cudnn_tf32"]
        assert not inside["benchmark"]
        assert inside["workspace"] == own.get("workspace", ":4096:8")
