"""Memory that runs out in a task is reported with its name; other errors pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import CompileError
from reallm_compiler.models.weights import Weights
from reallm_compiler.runs.oom import oom_to_error


def test_what_torch_really_says() -> None:
    with pytest.raises(CompileError, match="memory ran out") as caught, oom_to_error("here"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert caught.value.location == "here"
    assert "same command again" in str(caught.value.hint)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory. Tried")]
)
def test_other_ways_to_say_it(error: Exception) -> None:
    with pytest.raises(CompileError, match="memory ran out"), oom_to_error("here"):
        raise error


def test_bugs_stay_bugs() -> None:
    with pytest.raises(RuntimeError, match="shapes"), oom_to_error("here"):
        raise RuntimeError("shapes cannot be multiplied")


def test_the_matrix_is_named_and_the_run_goes_on(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "o.reallm"
    recipe = {"reallm": 1}
    original = Weights.matrix

    def greedy(self: Weights, tensor: str, *rest: object, **more: object) -> torch.Tensor:
        if "layers.1.mlp.up_proj" in tensor:
            torch.empty(1 << 60, dtype=torch.uint8)
        return original(self, tensor, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "matrix", greedy)
        with pytest.raises(CompileError, match="memory ran out") as caught:
            reallm.compile(recipe, model=tiny_llama, output=path, device="cpu")
    assert caught.value.location == "model.layers.1.mlp.up_proj"
    report = reallm.compile(recipe, model=tiny_llama, output=path, device="cpu", resume="required")
    assert report.tasks_resumed > 3
