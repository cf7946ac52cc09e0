"""Errors in a share group name the matrix that has them; a float16 model stays finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler.errors import CodecError
from reallm_compiler.execute import coder

SHARED = {
    "reallm": 1,
    "defaults": {
        "scales": {"kind": "rms", "per": "row"},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
        "share": "all",
    },
}
TRAINED = {
    "reallm": 1,
    "defaults": {
        "autoencoder": {"kind": "hnerv", "patch": 32, "width": 4, "epochs": 1},
        "scales": {"kind": "none"},
        "quantizer": {"kind": "none"},
        "share": "all",
    },
}
NAMES = ("layers.0.a", "layers.0.b", "layers.0.c")


def checkpoint(folder: Path, indices: dict[str, tuple[int, int]], value: float) -> Path:
    """Three matrices of random weights, some with `value` at a place."""
    tensors = {f"{name}.weight": torch.randn(16, 24) for name in NAMES}
    for name, index in indices.items():
        tensors[f"{name}.weight"][index] = value
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", [SHARED, TRAINED], ids=["codebook", "decoder"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_of_a_group_that_is_no_number_is_named(
    tmp_path: Path, recipe: dict[str, Any], name: str, value: float
) -> None:
    model = checkpoint(tmp_path / "model", {name: (3, 5)}, value)
    with pytest.raises(CodecError, match=f"row 3, column 5 is {value}") as caught:
        reallm.compile(recipe, model=model, output=tmp_path / "o.reallm", device="cpu", workers=1)
    assert caught.value.location == name


def test_the_name_comes_from_a_worker_too(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", {NAMES[1]: (3, 5)}, math.inf)
    with pytest.raises(CodecError, match="row 3, column 5 is inf") as caught:
        reallm.compile(
            "reallm-2bit-data-free",
            model=model,
            output=tmp_path / "o.reallm",
            device="cpu",
            workers=2,
        )
    assert caught.value.location == NAMES[1]


def test_a_trial_names_it_once(tmp_path: Path) -> None:
    """A trial fits the group when it meets the first of the matrices, which has nothing wrong."""
    model = checkpoint(tmp_path / "model", {NAMES[1]: (3, 5)}, math.inf)
    with pytest.raises(CodecError) as caught:
        reallm.compile(SHARED, model=model, only="*.[ab]", device="cpu", workers=1)
    assert caught.value.location == NAMES[1]


def test_what_is_wrong_with_all_of_a_group_names_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(plan: Any, weights: Any, **options: Any) -> Any:
        assert len(list(weights)) == len(NAMES)
        raise CodecError("no codebook")

    monkeypatch.setattr(coder, "fit_shared", refuse)
    model = checkpoint(tmp_path / "model", {}, 0.0)
    with pytest.raises(CodecError) as caught:
        reallm.compile(SHARED, model=model, output=tmp_path / "o.reallm", device="cpu", workers=1)
    assert caught.value.location == "share group all"


@pytest.mark.parametrize("recipe", ["reallm-2bit-data-free", "nf4", SHARED])
def test_float16_weights_at_the_end_of_its_range_come_back_finite(
    tmp_path: Path, recipe: Any
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    largest = torch.finfo(torch.float16).max
    draw = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    weight = (draw * largest).clamp(-largest, largest).to(torch.float16)  # a third at the end
    save_file({"layers.0.a.weight": weight}, model / "model.safetensors")
    reallm.compile(recipe, model=model, output=tmp_path / "o.reallm", device="cpu", workers=1)
    with reallm.open(tmp_path / "o.reallm") as archive:
        decoded = archive.matrix("layers.0.a")
        exact = archive.matrix("layers.0.a", dtype=torch.float32)
        error = archive.errors["layers.0.a"]
    assert decoded.dtype == torch.float16
    assert torch.isfinite(decoded).all()
    assert (exact.abs() > largest).any() or recipe != "reallm-2bit-data-free"
    assert torch.equal(decoded, exact.clamp(-largest, largest).to(torch.float16))
    wrong = (decoded.double() - weight.double()).norm() / weight.double().norm()
    assert wrong <= error * 1.01
    reallm.reconstruct(tmp_path / "o.reallm", tmp_path / "back")
    (back,) = load_file(tmp_path / "back" / "model.safetensors").values()
    assert torch.equal(back, decoded)
