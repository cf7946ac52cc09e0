"""A device by name: what is not there is refused with the caller's own error."""

from __future__ import annotations

import pytest
import torch

from reallm_compiler.errors import CompileError, EvaluationError, FinetuneError, ReallmError
from reallm_compiler.runs.devices import choose_device


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", CompileError) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", CompileError) == torch.device("cuda")


@pytest.mark.parametrize("error", [CompileError, EvaluationError, FinetuneError])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "`gpu` is not a device"),
        ("", "`` is not a device"),
        (3.5, "`3.5` is not a device"),
        ("cuda", "no usable CUDA device"),
        ("cuda:1", "no usable CUDA device"),
        ("meta", "`meta` is not supported"),
        ("xla", "`xla` cannot be used"),
    ],
)
def test_a_device_that_is_not_there(
    name: str, message: str, error: type[ReallmError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        choose_device(name, error)


def test_only_supported_types() -> None:
    with pytest.raises(CompileError, match="`mps` is not supported"):
        choose_device("mps", CompileError, types=("cpu", "cuda"))
    assert choose_device("cpu", CompileError, types=("cpu", "cuda")).type == "cpu"


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(CompileError, match=r"`cuda:2` does not exist.*2 CUDA devices"):
        choose_device("cuda:2", CompileError)
