"""Measured damage: that of the coded matrix, by the formula, whatever the workers and the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.checkpoint import open_source
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CalibrateError, CompileError
from reallm_compiler.models.weights import Weights
from reallm_compiler.search.damage import Damage, measure
from reallm_compiler.search.measure import predicted_kl
from reallm_compiler.stages import MatrixPlan

ROWS = {"scales": {"kind": "absmax", "per": "row"}}
PLAIN = [{**ROWS, "quantizer": {"kind": "uniform", "bits": bits}} for bits in (2, 4)]
WEIGHED = [{**one, "rounding": {"kind": "feedback"}} for one in PLAIN]
SHARED = [
    {
        "scales": {"kind": "rms", "per": "tensor"},
        "quantizer": {"kind": "trellis", "bits": bits, "state_bits": 6, "iterations": 2},
        "share": "model",
    }
    for bits in ("3/2", 3)
]


def recipe(defaults: Mapping[str, Any]) -> dict[str, Any]:
    needing = {"statistics": "required"} if "rounding" in defaults else {}
    return {"reallm": 1, **needing, "defaults": dict(defaults)}


def jobs(model: Path, candidates: list[dict[str, Any]]) -> dict[str, list[MatrixPlan]]:
    found: dict[str, list[MatrixPlan]] = {}
    for defaults in candidates:
        for matrix in reallm.plan(recipe(defaults), model=model).matrices:
            found.setdefault(matrix.name, []).append(matrix.plan)
    return found


def measured(model: Path, candidates: list[dict[str, Any]], **rest: Any) -> Any:
    return measure(
        jobs(model, candidates), open_source(str(model)), device="cpu", **{"workers": 1, **rest}
    )


def statistics(p: int, q: int, *, diagonal: bool) -> MatrixStatistics:
    generator = torch.Generator().manual_seed(p * q)
    x, g = torch.randn(9, q, generator=generator), torch.randn(9, p, generator=generator)
    inputs, outputs = x.T @ x / 9, g.T @ g / 9
    if diagonal:
        inputs, outputs = inputs.diagonal().clone(), outputs.diagonal().clone()
    return MatrixStatistics(
        inputs=inputs,
        weighted_inputs=inputs,
        outputs=outputs,
        weighted_outputs=outputs,
        energy=3.5,
        mean_abs=None,
        count=9,
    )


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_formula(diagonal: bool, scale: float) -> None:
    error = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    found = statistics(5, 7, diagonal=diagonal)
    full = [
        torch.diag(one) if diagonal else one
        for one in (found.weighted_outputs, found.weighted_inputs)
        if one is not None
    ]
    outputs, inputs = (one.double() for one in full)
    moved = outputs @ error.double() @ inputs @ error.double().T
    expected = 0.5 * float(moved.trace()) / 3.5 * scale**2
    assert predicted_kl(error * scale, found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("candidates", [PLAIN, WEIGHED, SHARED], ids=["plain", "weighed", "shared"])
def test_it_is_that_of_a_compile(
    candidates: list[dict[str, Any]], tiny_llama: Path, tiny_statistics: Path, tmp_path: Path
) -> None:
    """The error that a compile by the candidate has, and the KL that follows from its file."""
    found = measured(tiny_llama, candidates, statistics=tiny_statistics)
    weights = Weights(open_source(str(tiny_llama)))
    for index, defaults in enumerate(candidates):
        needed = tiny_statistics if "rounding" in defaults else None
        output = tmp_path / "out.reallm"
        report = reallm.compile(
            recipe(defaults), model=tiny_llama, output=output, statistics=needed, force=True
        )
        with reallm.open(output) as archive, StatisticsFile(tiny_statistics) as file:
            for matrix in archive.plan.matrices:
                damage = found[matrix.name][index]
                assert damage.error == pytest.approx(report.errors[matrix.name] ** 2, rel=1e-9)
                weight = weights.matrix(matrix.tensor, None, transposed=False).double()
                error = weight - archive.matrix(matrix.name, dtype=torch.float32).double()
                one = file.read(matrix.name)
                assert one.weighted_outputs is not None
                assert one.weighted_inputs is not None
                assert one.energy is not None
                moved = one.weighted_outputs.double() @ error @ one.weighted_inputs.double()
                expected = 0.5 * float((moved * error).sum()) / one.energy
                assert damage.kl == pytest.approx(expected, rel=1e-3)


def test_workers_and_cache_change_nothing(
    tiny_llama: Path, tiny_statistics: Path, tmp_path: Path, coded: list[tuple[int, int]]
) -> None:
    candidates = [WEIGHED[0], SHARED[0]]
    given: dict[str, Any] = {"statistics": tiny_statistics}
    first = measured(tiny_llama, candidates, **given, cache=tmp_path)
    count = len(coded)
    assert count == sum(len(one) for one in first.values())
    assert measured(tiny_llama, candidates, **given, cache=tmp_path) == first
    assert len(coded) == count  # nothing was coded again
    assert measured(tiny_llama, candidates, **given, workers=2) == first


@pytest.mark.parametrize("what", ["weights", "plan", "seed", "statistics"])
def test_what_changes_is_measured_again(
    what: str,
    tiny_llama: Path,
    tiny_statistics: Path,
    tmp_path: Path,
    coded: list[tuple[int, int]],
) -> None:
    names = [name for name in jobs(tiny_llama, WEIGHED) if name.endswith(".0.self_attn.q_proj")]

    def run(model: Path, candidates: list[dict[str, Any]], **rest: Any) -> dict[str, list[Damage]]:
        chosen = {name: jobs(model, candidates)[name] for name in names}
        return measure(chosen, open_source(str(model)), cache=tmp_path / "cache", workers=1, **rest)

    run(tiny_llama, WEIGHED, statistics=tiny_statistics)
    coded.clear()
    if what == "weights":
        run(tiny_llama, SHARED[:1])
        coded.clear()
        run(_negated(tiny_llama, tmp_path / "other", names[0] + ".weight"), SHARED[:1])
    elif what == "plan":
        run(tiny_llama, WEIGHED[:1] + PLAIN[:1], statistics=tiny_statistics)
    elif what == "seed":
        run(tiny_llama, WEIGHED[:1], statistics=tiny_statistics, seed=1)
    else:
        again = tmp_path / "again.stats"
        text = tmp_path / "text.txt"
        text.write_text("Tom counts the lamps in the evening, and the cat sleeps. " * 9)
        reallm.calibrate(tiny_llama, output=again, text=text, samples=12, window=12)
        run(tiny_llama, WEIGHED[:1], statistics=again)
    assert len(coded) == 1


def _negated(model: Path, folder: Path, tensor: str) -> Path:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(model / "model.safetensors")
    save_file(
        tensors | {tensor: -tensors[tensor]},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


class TestRefusals:
    def test_no_such_matrix(self, tiny_llama: Path) -> None:
        plan = MatrixPlan.model_validate(PLAIN[0])
        with pytest.raises(CompileError, match="is no matrix of this model"):
            measure({"model.layers.9.x": [plan]}, open_source(str(tiny_llama)))

    def test_needs_statistics(self, tiny_llama: Path) -> None:
        with pytest.raises(CompileError, match="need statistics of the model"):
            measured(tiny_llama, WEIGHED)

    def test_statistics_of_another_model(
        self, tiny_llama: Path, tiny_statistics: Path, tmp_path: Path
    ) -> None:
        other = _negated(tiny_llama, tmp_path / "other", "model.layers.0.self_attn.q_proj.weight")
        for candidates in (PLAIN, WEIGHED):
            with pytest.raises(CalibrateError, match="of other weights"):
                measured(other, candidates, statistics=tiny_statistics)
