"""`survey` and `inspect --heatmap` on the tiny model."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

KEYS = {
    "name", "shape", "layer", "norm", "spectrum", "outliers", "neighbours", "block_scales",
    "scales", "structure", "structure_bits", "recipes", "best", "explanation",
}  # fmt: skip
INNER = {
    "spectrum": {"effective_rank", "stable_rank", "largest", "low_rank"},
    "outliers": {"rms", "kurtosis", "max_over_rms", "beyond_4_sigma"},
    "neighbours": {"rows", "columns", "magnitude_rows", "magnitude_columns"},
    "block_scales": {"spread", "noise_spread"},
}
SCALE = {"per", "gain_bits", "cost_bits", "net_bits"}
SHARE = {"fraction", "rank", "share", "noise_share", "cost_bits", "net_bits"}
AXIS = {"correlation", "shuffled", "ordered", "z"}
MEASURE = {
    "recipe", "trained", "paper_bits", "exact_bits", "bytes", "relative_error", "gap_bits",
    "best_within",
}  # fmt: skip
TOTAL = {"recipe", "matrices", "exact_bits", "relative_error", "gap_bits", "best"}
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def args(tiny_llama, tiny_recipe):
    only = ("--only", "model.layers.*.self_attn.q_proj")
    # The recipe's rule for another matrix matches the model, though not what is surveyed.
    return ("survey", tiny_llama, *only, "--recipe", tiny_recipe, "--recipe", "nf3")


def test_json_has_exactly_the_documented_keys(run, args, archive):
    result = run(*args, "--json")
    assert result.code == 0
    assert set(result.json) == {"matrices", "recipes", "advice"}
    assert set(result.json["advice"]) == {"recipe", "measured", "explanation"}
    rows = result.json["matrices"]
    assert [row["name"] for row in rows] == [Q_PROJ, Q_PROJ.replace("0", "1")]
    for row in rows:
        assert set(row) == KEYS
        for key, inner in INNER.items():
            assert set(row[key]) == inner
        assert all(set(part) == SHARE for part in row["spectrum"]["low_rank"])
        assert [one["per"] for one in row["scales"]] == ["row", "column", "block"]
        assert all(set(one) == SCALE for one in row["scales"])
        assert all(set(axis) == AXIS for axis in row["neighbours"].values())
        assert [one["recipe"] for one in row["recipes"]] == ["tiny", "nf3"]
        assert all(set(one) == MEASURE for one in row["recipes"])
        assert row["structure"] == "none"  # random weights
        assert "white noise" in row["explanation"]
    assert all(set(row) == TOTAL for row in result.json["recipes"])
    stored = {row["name"]: row for row in run("inspect", archive, "--json").json["matrices"]}
    first = rows[0]["recipes"][0]
    for key in ("exact_bits", "paper_bits", "bytes", "relative_error"):
        assert first[key] == stored[Q_PROJ][key]


def test_each_documented_key_is_in_the_manual():
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    chapter = manual.partition("\n## `survey`\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"\w+", chapter))
    for keys in (KEYS, *INNER.values(), SCALE, SHARE, AXIS, MEASURE, TOTAL):
        assert keys <= documented, keys - documented


def test_tables_and_pictures(run, args, tmp_path):
    result = run(*args, "--plots", tmp_path / "pictures")
    assert result.code == 0
    for part in (Q_PROJ, "exact bits", "best at equal bits", "what fits", "nf3", "none"):
        assert part in result.out
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == ["error.png", "spectrum.png", "structure.png"]
    assert "recipe  tiny" in result.err
    assert "survey: 2 of 2 matrices" in result.err


def test_mistakes_are_reported(run, tiny_llama, tmp_path, monkeypatch):
    assert run("survey", tmp_path / "none").code == 4
    assert run("survey", tiny_llama, "--recipe", tmp_path / "no.yaml").code == 3
    nothing = run("survey", tiny_llama, "--only", "*.nothing")
    assert (nothing.code, nothing.out) == (10, "")
    assert "matches no matrix" in nothing.err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    missing = run("survey", tiny_llama, "--plots", tmp_path / "pictures")
    assert (missing.code, missing.out) == (10, "")
    assert "pip install 'reallm-compiler[plots]'" in missing.err
    assert not (tmp_path / "pictures").exists()


def test_a_heatmap_beside_the_original(run, archive, tiny_llama, tmp_path):
    picture = tmp_path / "f.png"
    args = ("inspect", archive, "--heatmap", Q_PROJ, "-o", picture, "--model", tiny_llama)
    result = run(*args)
    assert (result.code, result.out) == (0, f"{picture}\n")
    assert "as measured when the archive was made" in result.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_another_model_is_noticed(run, archive, tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_llama / "model.safetensors")
    save_file({name: 2 * one for name, one in tensors.items()}, tmp_path / "other.safetensors")
    picture = tmp_path / "f.png"
    other = tmp_path / "other.safetensors"
    result = run("inspect", archive, "--heatmap", Q_PROJ, "-o", picture, "--model", other)
    assert result.code == 0
    assert "is not the model that it was made of" in result.err


def test_a_heatmap_says_what_it_needs(run, archive, tiny_llama, tmp_path):
    picture = tmp_path / "f.png"
    start = ("inspect", archive, "--heatmap")
    without = run(*start, Q_PROJ, "-o", picture)
    assert (without.code, without.out) == (2, "")
    assert "an archive does not hold the original weights" in without.err
    assert run(*start, Q_PROJ, "--model", tiny_llama).code == 2
    full = ("-o", picture, "--model", tiny_llama)
    assert run(*start, Q_PROJ, *full, "--json").code == 2
    assert run("inspect", archive, "-o", picture).code == 2
    unknown = run(*start, Q_PROJ + "x", *full)
    assert unknown.code == 10
    assert f"did you mean `{Q_PROJ}`?" in unknown.err
    (tmp_path / "notes.png").write_text("mine")
    taken = run(*start, Q_PROJ, "-o", tmp_path / "notes.png", "--model", tiny_llama)
    assert taken.code == 6
    assert not picture.exists()
