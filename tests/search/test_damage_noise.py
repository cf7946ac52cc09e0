"""Without gradients: the KL of the model's own text under an error in one matrix."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.checkpoint import open_source
from reallm_compiler.execute.bands import by_bands
from reallm_compiler.models.weights import Weights
from reallm_compiler.runs.machines import ThisMachine
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.stop import Interrupted, StopRequest
from reallm_compiler.search import noise
from reallm_compiler.search import slopes as driver
from reallm_compiler.search.damage import Damage, measure
from reallm_compiler.search.joint import joint_kl
from reallm_compiler.search.noise import Slopes
from reallm_compiler.search.sketch import BUCKETS

WANTED = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SAMPLES", 8)
    monkeypatch.setattr(driver, "WINDOW", 24)


def slopes(model: Path, cache: Path, wanted: list[str] = WANTED, **rest: Any) -> dict[str, Slopes]:
    given: dict[str, Any] = {"workers": 1, "stop": StopRequest(), "report": lambda a, b: None}
    return driver.slopes(
        open_source(str(model)),
        wanted,
        seed=0,
        machines=ThisMachine(torch.device("cpu")),
        cache=cache,
        **{**given, **rest},
    )


def test_nothing_but_matrix_and_seed_decides_them(tiny_llama: Path, tmp_path: Path) -> None:
    first = slopes(tiny_llama, tmp_path / "a")
    assert all(one.noise > 0 and one.shrinking > 0 for one in first.values())
    assert slopes(tiny_llama, tmp_path / "b", WANTED[::-1]) == first
    other = slopes(tiny_llama, tmp_path / "c", workers=2)
    assert other == first
    assert all(np.array_equal(other[name].direction, first[name].direction) for name in WANTED)
    (alone,) = slopes(tiny_llama, tmp_path / "d", WANTED[1:]).values()
    assert alone == first[WANTED[1]]


def test_they_are_kept(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = slopes(tiny_llama, tmp_path)
    monkeypatch.setattr(driver, "NoiseJob", None)
    kept = slopes(tiny_llama, tmp_path)
    assert kept == first
    assert all(np.array_equal(kept[name].direction, first[name].direction) for name in WANTED)
    with pytest.raises(TypeError):
        slopes(tiny_llama, tmp_path, ["model.layers.0.mlp.up_proj"])


@pytest.mark.parametrize(("slope", "size"), [("noise", "SIZE"), ("shrinking", "SHRINK")])
def test_the_kl_is_linear_in_the_squared_error(
    slope: str, size: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = slopes(tiny_llama, tmp_path)
    smaller = getattr(noise, size) / 4
    monkeypatch.setattr(noise, size, smaller)
    monkeypatch.setattr(driver, size, smaller)  # it is a part of the key
    for name, found in slopes(tiny_llama, tmp_path).items():
        assert getattr(found, slope) == pytest.approx(getattr(first[name], slope), rel=0.4)


def test_query_and_key_change_the_logits_alike(tiny_llama: Path, tmp_path: Path) -> None:
    """Either makes the scores of attention smaller; value and output are such a pair too."""
    projections = [f"model.layers.0.self_attn.{one}_proj" for one in "qkvo"]
    found = slopes(tiny_llama, tmp_path, projections)
    query, key, value, output = (found[name].direction for name in projections)
    assert query.dtype == np.float32
    for one in (query, key, value, output):
        assert float(one @ one) == pytest.approx(1, rel=1e-5)
    assert float(query @ key) > 0.99
    assert float(value @ output) > 0.99
    assert abs(float(query @ value)) < 0.9


def test_the_kl_of_two_smaller_matrices_is_that_of_the_model(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    names += [f"model.layers.0.self_attn.{one}_proj" for one in "kvo"]
    found = slopes(tiny_llama, tmp_path, names)
    ids = driver._text(open_source(str(tiny_llama)), 0, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    shrink = 1 / 16

    def damage(name: str) -> Damage:
        slope = found[name]
        return Damage(
            error=shrink**2,
            kl=slope.kl(shrink**2, shrink),
            shift=slope.shift(shrink) / noise.TOGETHER**0.5,
            direction=slope.direction,
        )

    with torch.no_grad():
        before = model(ids).logits.double().log_softmax(-1)
        for pair in itertools.combinations(names, 2):
            weights = [model.get_parameter(f"{name}.weight").detach() for name in pair]
            for weight in weights:
                weight.mul_(1 - shrink)
            after = model(ids).logits.double().log_softmax(-1)
            for weight in weights:
                weight.div_(1 - shrink)
            kl = float((before.exp() * (before - after)).sum(-1).mean())
            assert joint_kl([damage(name) for name in pair]) == pytest.approx(kl, rel=0.15)


@pytest.mark.parametrize(
    "direction",
    [
        {},
        {"direction": torch.zeros(3)},
        {"direction": torch.zeros(BUCKETS, dtype=torch.float64)},
        {"direction": torch.full((BUCKETS,), math.nan)},
    ],
    ids=["none", "short", "float64", "nan"],
)
def test_an_entry_with_another_direction_is_as_if_it_were_not_there(
    direction: dict[str, torch.Tensor],
) -> None:
    facts = {"noise": (1.0).hex(), "shrinking": (2.0).hex()}
    assert Slopes.of(facts, direction) is None
    assert Slopes.of(facts, {"direction": torch.zeros(BUCKETS)}) is not None


def test_it_is_the_kl_of_the_changed_model(tiny_llama: Path, tmp_path: Path) -> None:
    """As a model of transformers with the same error in its parameter measures it."""
    from transformers import AutoModelForCausalLM

    name = WANTED[1]
    (found,) = slopes(tiny_llama, tmp_path, [name]).values()
    ids = driver._text(open_source(str(tiny_llama)), 0, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    weight = model.get_parameter(f"{name}.weight").detach()
    kept = weight.clone()
    with torch.no_grad():
        before = model(ids).logits.double().log_softmax(-1)

        def kl(changed: torch.Tensor) -> float:
            weight.copy_(changed)
            after = model(ids).logits.double().log_softmax(-1)
            return float((before.exp() * (before - after)).sum(-1).mean())

        generator = torch.Generator().manual_seed(seed_for(0, f"noise/{name}"))
        made = torch.randn(weight.shape, generator=generator)
        noisy = kept + made * kept.norm() / made.norm() * math.sqrt(noise.SIZE)
        assert found.noise == pytest.approx(kl(noisy) / noise.SIZE, rel=1e-3)
        smaller = kl(kept * (1 - noise.SHRINK))
    assert found.shrinking == pytest.approx(smaller / noise.SHRINK**2, rel=1e-3)


BY_BANDS = {
    "scales": {"kind": "rms", "per": "row"},
    "quantizer": {"kind": "normal_float", "bits": 2},
}
TRELLIS = {
    "transform": [{"kind": "hadamard", "sides": "both"}],
    "scales": {"kind": "rms", "per": "tensor"},
    "quantizer": {"kind": "trellis", "bits": "5/4", "state_bits": 6, "iterations": 2},
}


@pytest.mark.parametrize("defaults", [BY_BANDS, TRELLIS], ids=["by bands", "trellis"])
def test_damage_is_of_noise_and_of_shrinking(
    defaults: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """By the matrices that a compile stores, split into a smaller weight and the rest."""
    recipe = {"reallm": 1, "defaults": defaults}
    plan = reallm.plan(recipe, model=tiny_llama)
    assert all(by_bands(plan.by_name[name]) == (defaults is BY_BANDS) for name in WANTED)
    jobs = {name: [plan.by_name[name].plan] for name in WANTED}
    source = open_source(str(tiny_llama))
    found = measure(jobs, source, cache=tmp_path, workers=1)
    costs = slopes(tiny_llama, tmp_path)
    reallm.compile(recipe, model=tiny_llama, output=tmp_path / "out.reallm")
    weights = Weights(source)
    with reallm.open(tmp_path / "out.reallm") as archive:
        for name, (damage,) in found.items():
            weight = weights.matrix(f"{name}.weight", None, transposed=False).double()
            coded = archive.matrix(name, dtype=torch.float32).double()
            share = float((weight * coded).sum() / (weight * weight).sum())
            rest = float((coded - share * weight).square().sum() / weight.square().sum())
            assert share < 0.9
            expected = costs[name].noise * rest + costs[name].shrinking * (1 - share) ** 2
            assert damage.kl == pytest.approx(expected, rel=1e-4)


def test_a_stop_keeps_what_is_done(tiny_llama: Path, tmp_path: Path) -> None:
    stop = StopRequest()

    def report(done: int, total: int) -> None:
        stop.requested = done == driver.RUNS

    with pytest.raises(Interrupted):
        slopes(tiny_llama, tmp_path, stop=stop, report=report)
    counts: list[int] = []
    found = slopes(tiny_llama, tmp_path, report=lambda done, total: counts.append(done))
    assert counts[0] == driver.RUNS
    assert found == slopes(tiny_llama, tmp_path / "other")
