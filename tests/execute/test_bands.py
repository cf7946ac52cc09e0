"""Bands of rows: the same codes as of the whole matrix, in the memory of one band."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import reallm_compiler as reallm
from reallm_compiler.codecs import encode_matrix, to_bytes
from reallm_compiler.errors import CodecError
from reallm_compiler.execute import bands
from reallm_compiler.execute.preflight import worker_bytes
from reallm_compiler.reader.verify import verify

SHAPE = (45, 20)


def recipe(bits: int, kind: str = "uniform") -> dict[str, object]:
    return {
        "reallm": 1,
        "defaults": {
            "scales": {"kind": "absmax", "per": "row"},
            "quantizer": {"kind": kind, "bits": bits},
        },
    }


def checkpoint(folder: Path) -> torch.Tensor:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    weight[7] = 0
    folder.mkdir()
    save_file({"table.weight": weight}, folder / "model.safetensors")
    return weight


@pytest.mark.parametrize(("bits", "kind"), [(8, "uniform"), (3, "uniform"), (5, "normal_float")])
def test_bands_are_the_whole(
    bits: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = checkpoint(tmp_path / "model")
    monkeypatch.setattr(bands, "BAND", 16 * SHAPE[1])  # 16, 16 and 13 rows
    output = tmp_path / "o.reallm"
    report = reallm.compile(recipe(bits, kind), model=tmp_path / "model", output=output)
    assert verify(output) == []
    with reallm.open(output) as archive:
        (matrix,) = archive.plan.matrices
        assert bands.by_bands(matrix)
        whole = encode_matrix(matrix.plan, weight, seed=0, source_dtype="f32")
        for spec in matrix.specs:
            stored = archive.section(f"matrix:table/{spec.role}")
            assert bytes(stored) == bytes(to_bytes(whole.sections[spec.role], spec))
    assert report.errors["table"] == pytest.approx(whole.relative_error)


def test_a_trial_measures_by_bands_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = checkpoint(tmp_path / "model")
    monkeypatch.setattr(bands, "BAND", 16 * SHAPE[1])
    report = reallm.compile(recipe(4), model=tmp_path / "model", only="*")
    plan = reallm.plan(recipe(4), model=tmp_path / "model").matrices[0].plan
    whole = encode_matrix(plan, weight, seed=0, source_dtype="f32")
    assert report.errors["table"] == pytest.approx(whole.relative_error)


def test_a_row_of_a_later_band_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    weight = checkpoint(folder)
    weight[40, 3] = math.nan
    save_file({"table.weight": weight}, folder / "model.safetensors")
    monkeypatch.setattr(bands, "BAND", 16 * SHAPE[1])
    with pytest.raises(CodecError, match="row 40, column 3 is nan") as caught:
        reallm.compile(recipe(8), model=folder, output=tmp_path / "o.reallm", workers=1)
    assert caught.value.location == "table"


def test_a_table_takes_the_memory_of_a_band() -> None:
    """An embedding of Llama-3-8B in six copies of float32 would be 12.6 GB."""
    shapes = {"shapes": {"model.embed_tokens.weight": [128256, 4096]}}
    coded = reallm.plan({**recipe(8), "rules": [{"match": "*", "set": {}}]}, model=shapes)
    assert coded.matrices[0].numel == 128256 * 4096
    assert worker_bytes(coded) < 400 * 2**20
