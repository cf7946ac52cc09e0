"""Numerical settings: fixed meanwhile, and all of them put back, whatever they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from reallm_compiler.runs.numerics import CUBLAS_WORKSPACE, fixed_numerics

MODE: Any = torch.utils.deterministic


BACKENDS: Any = torch.backends


def fp32_settings() -> dict[str, Any]:
    """The settings that torch has since 2.9, by name."""
    found = {"all": BACKENDS}
    for backend, names in (("cuda", ["matmul"]), ("cudnn", ["conv", "rnn"]), ("mkldnn", NAMES)):
        for name in names:
            found[f"{backend}.{name}"] = getattr(getattr(BACKENDS, backend), name, None)
    return {name: one for name, one in found.items() if hasattr(one, "fp32_precision")}


NAMES = ["matmul", "conv", "rnn"]


def settings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": MODE.fill_uninitialized_memory,
        "precision": readable(torch.get_float32_matmul_precision),
        "cudnn_tf32": readable(lambda: BACKENDS.cudnn.allow_tf32),
        "benchmark": BACKENDS.cudnn.benchmark,
        "workspace": os.environ.get(CUBLAS_WORKSPACE),
        **{name: one.fp32_precision for name, one in fp32_settings().items()},
    }


def readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # the newer way was used
        return "unreadable"


def apply(values: dict[str, Any]) -> None:
    """Put settings in force; the newer ones win."""
    torch.set_num_threads(values["threads"])
    torch.use_deterministic_algorithms(values["deterministic"], warn_only=values["warn_only"])
    MODE.fill_uninitialized_memory = values["fill"]
    BACKENDS.cudnn.allow_tf32 = values["cudnn_tf32"]
    BACKENDS.cudnn.benchmark = values["benchmark"]
    torch.set_float32_matmul_precision(values["precision"])
    for name, one in fp32_settings().items():
        if name in values:
            one.fp32_precision = values[name]
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
    {"precision": "high"},
    {"precision": "medium", "workspace": ":16:8"},
    {"cuda.matmul": "tf32"},
    {"all": "tf32", "cuda.matmul": "none", "mkldnn.matmul": "none"},
    {"mkldnn.matmul": "bf16", "cudnn.conv": "ieee"},
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("own", CALLERS, ids=str)
@pytest.mark.parametrize("fails", [False, True])
def test_all_settings_come_back(own: dict[str, Any], device: str, fails: bool) -> None:
    plain = {"threads": 1, "deterministic": False, "warn_only": False, "fill": True}
    flags = {"precision": "highest", "cudnn_tf32": True, "benchmark": False, "workspace": None}
    apply({**plain, **flags, **own})
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
    assert inside.items() >= {**fixed, "precision": "highest", "cudnn_tf32": False}.items()
    assert {inside[name] for name in fp32_settings() if name != "all"} <= {"ieee"}
    if device == "cuda":
        assert inside["workspace"] == own.get("workspace", ":4096:8")


@pytest.mark.skipif("cuda.matmul" not in fp32_settings(), reason="torch before 2.9")
def test_a_setting_that_followed_the_common_one_still_does() -> None:
    BACKENDS.fp32_precision = "tf32"
    BACKENDS.cuda.matmul.fp32_precision = "none"
    with fixed_numerics(1, torch.device("cpu")):
        pass
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "ieee"
