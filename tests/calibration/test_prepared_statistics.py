"""Statistics of the original serve a prepared model: they are those measured on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import reallm_compiler as reallm
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CalibrateError
from reallm_compiler.execute.statistics import read_statistics
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.build import build, open_model
from reallm_compiler.reader.reconstruct import reconstruct
from reallm_compiler.recipe import load_recipe
from tests.conftest import relative_difference

ROTATED: dict[str, Any] = {
    "reallm": 1,
    "statistics": "required",
    "prepare": [{"kind": "fold_norms"}, {"kind": "rotate"}],
    "rules": [{"match": "lm_head", "set": {"quantizer": {"kind": "none"}}}],
}
WITHIN = {
    "inputs": 1e-5,
    "weighted_inputs": 1e-5,
    "outputs": 1e-5,
    "weighted_outputs": 1e-3,  # these two to the epsilon of the norms
    "energy": 1e-3,
}


@pytest.fixture(scope="module")
def original(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in float32 with norms whose gains are not all 1."""
    folder = tmp_path_factory.mktemp("original") / "model"
    shutil.copytree(tiny_llama, folder)
    tensors = {n: t.float() for n, t in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(1)
    for name, values in tensors.items():
        if "norm" in name:
            values.mul_(torch.rand(values.shape, generator=generator) + 0.5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    return folder


def test_they_are_those_of_the_prepared_model(
    original: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    measured, again = tmp_path / "original.stats", tmp_path / "prepared.stats"
    reallm.calibrate(original, output=measured, **settings)
    recipe = load_recipe(ROTATED)
    inventory = open_model(recipe, original)
    plan = build(recipe, inventory)
    archive = tmp_path / "x.reallm"
    exact = {key: value for key, value in ROTATED.items() if key != "statistics"}
    reallm.compile(exact, model=original, output=archive, progress=False)
    prepared = reconstruct(archive, tmp_path / "prepared", progress=False)
    reallm.calibrate(prepared, output=again, **settings)
    weights = Weights(inventory)
    with StatisticsFile(measured) as file, StatisticsFile(again) as wanted:
        assert len(plan.matrices) == 15
        for matrix in plan.matrices:
            made = read_statistics(file, matrix, weights, torch.device("cpu"))
            known = wanted.read(matrix.name)
            for key, within in WITHIN.items():
                one, other = getattr(made, key), getattr(known, key)
                if other is not None:
                    assert relative_difference(one, other) < within, (matrix.name, key)
            assert (made.mean_abs is None) == ("down" not in matrix.name)


def rotate_one(original: Path, settings: dict[str, Any], out: Path, **more: Any) -> None:
    """A compile that needs statistics, of those that `more` says."""
    reallm.calibrate(original, output=out, **settings, **more)
    recipe = {
        **ROTATED,
        "defaults": {
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": "uniform", "bits": 3},
            "rounding": {"kind": "feedback", "sides": "input"},
        },
    }
    reallm.compile(
        recipe, model=original, statistics=out, output=out.with_suffix(".reallm"), progress=False
    )


def test_a_diagonal_is_not_enough_for_a_rotation(
    original: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CalibrateError, match="say too little") as caught:
        rotate_one(original, settings, tmp_path / "x", diagonal=1)
    assert "the diagonal alone" in str(caught.value.note)


def test_a_gain_of_zero_hides_what_reached_the_matrix(
    original: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(original, folder)
    tensors = load_file(folder / "model.safetensors")
    gains: Tensor = tensors["model.layers.1.post_attention_layernorm.weight"]
    gains[7] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CalibrateError, match=r"layers.1.mlp.gate_proj say too little") as caught:
        rotate_one(folder, settings, tmp_path / "x")
    assert "channel 7" in str(caught.value.note)
