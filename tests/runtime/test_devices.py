"""Devices and types by name."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.errors import EvaluationError
from reallm_compiler.runtime.devices import resolve_device, resolve_dtype


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:1", "meta", "", 3.5])
def test_a_device_that_is_not_there_is_told(device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EvaluationError, match="there is no"):
        resolve_device(device)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("float32", torch.float32),
        ("torch.float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        ("source", None),
        ("auto", None),
        (None, None),
    ],
)
def test_types(given, dtype) -> None:
    assert resolve_dtype(given) == dtype


@pytest.mark.parametrize("given", ["int4", torch.int8, torch.float8_e4m3fn, 4])
def test_a_type_that_no_model_runs_in_is_told(given) -> None:
    with pytest.raises(EvaluationError, match="to run a model in"):
        resolve_dtype(given)
