"""Without gradients: the KL of the model's own text under noise in one matrix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.checkpoint import open_source
from reallm_compiler.runs.machines import ThisMachine
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.stop import Interrupted, StopRequest
from reallm_compiler.search import noise
from reallm_compiler.search.damage import measure

WANTED = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "SAMPLES", 8)
    monkeypatch.setattr(noise, "WINDOW", 24)


def slopes(model: Path, cache: Path, wanted: list[str] = WANTED, **rest: Any) -> dict[str, float]:
    given: dict[str, Any] = {"workers": 1, "stop": StopRequest(), "report": lambda a, b: None}
    return noise.slopes(
        open_source(str(model)),
        wanted,
        seed=0,
        machines=ThisMachine(torch.device("cpu")),
        cache=cache,
        **{**given, **rest},
    )


def test_nothing_but_matrix_and_seed_decides_them(tiny_llama: Path, tmp_path: Path) -> None:
    first = slopes(tiny_llama, tmp_path / "a")
    assert all(slope > 0 for slope in first.values())
    assert slopes(tiny_llama, tmp_path / "b", WANTED[::-1]) == first
    assert slopes(tiny_llama, tmp_path / "c", workers=2) == first
    (alone,) = slopes(tiny_llama, tmp_path / "d", WANTED[1:]).values()
    assert alone == first[WANTED[1]]


def test_they_are_kept(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = slopes(tiny_llama, tmp_path)
    monkeypatch.setattr(noise, "NoiseJob", None)
    assert slopes(tiny_llama, tmp_path) == first
    with pytest.raises(TypeError):
        slopes(tiny_llama, tmp_path, ["model.layers.0.mlp.up_proj"])


def test_the_kl_is_linear_in_the_squared_error(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = slopes(tiny_llama, tmp_path)
    monkeypatch.setattr(noise, "SIZE", noise.SIZE / 16)
    for name, slope in slopes(tiny_llama, tmp_path).items():
        assert slope == pytest.approx(first[name], rel=0.4)


def test_it_is_the_kl_of_the_changed_model(tiny_llama: Path, tmp_path: Path) -> None:
    """As a model of transformers with the same noise in its parameter measures it."""
    from transformers import AutoModelForCausalLM

    name = WANTED[1]
    (found,) = slopes(tiny_llama, tmp_path, [name]).values()
    ids = noise._text(open_source(str(tiny_llama)), 0, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        weight = model.get_parameter(f"{name}.weight")
        generator = torch.Generator().manual_seed(seed_for(0, f"noise/{name}"))
        made = torch.randn(weight.shape, generator=generator)
        weight += made * weight.norm() / made.norm() * math.sqrt(noise.SIZE)
        after = model(ids).logits.log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    assert found == pytest.approx(float(kl) / noise.SIZE, rel=1e-3)


def test_damage_is_slope_times_error(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = {
        "reallm": 1,
        "defaults": {
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 3},
        },
    }
    plan = reallm.plan(recipe, model=tiny_llama)
    jobs = {name: [plan.by_name[name].plan] for name in WANTED}
    found = measure(jobs, open_source(str(tiny_llama)), cache=tmp_path, workers=1)
    slope = slopes(tiny_llama, tmp_path)
    for name, (damage,) in found.items():
        assert damage.kl == slope[name] * damage.error


def test_a_stop_keeps_what_is_done(tiny_llama: Path, tmp_path: Path) -> None:
    stop = StopRequest()

    def report(done: int, total: int) -> None:
        stop.requested = done == 1

    with pytest.raises(Interrupted):
        slopes(tiny_llama, tmp_path, stop=stop, report=report)
    counts: list[int] = []
    found = slopes(tiny_llama, tmp_path, report=lambda done, total: counts.append(done))
    assert counts[0] == 1
    assert found == slopes(tiny_llama, tmp_path / "other")
