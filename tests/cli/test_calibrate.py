"""`reallm calibrate`, and statistics through `inspect`, `verify` and `compile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CORPUS


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("|".join(CORPUS))
    return path


@pytest.fixture(scope="module")
def options(words: Path) -> list[str]:
    return ["--text", str(words), "--samples", "4", "--window", "12", "--device", "cpu"]


def test_a_model_is_measured_and_looked_at(
    run: Any, tiny_llama: Path, options: list[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "m.stats")
    result = run("calibrate", tiny_llama, *options, "--separator", "|", "-o", out)
    assert result.code == 0, result.err
    assert result.out.startswith("15 matrices measured on ")
    for line in ("text    4 sequences", "model   15 matrices", "disk", "memory  about", "wrote"):
        assert line in result.err
    facts = run("inspect", out)
    assert facts.code == 0
    assert "kind `statistics`" in facts.out
    assert "of model.layers.0.self_attn.k_proj" in facts.out
    whole = json.loads(run("inspect", out, "--json").out)
    assert whole["kind"] == "statistics"
    assert whole["settings"]["separator"] == "|"
    name = "model.layers.1.mlp.down_proj"
    one = json.loads(run("inspect", out, name, "--json").out)
    assert one == next(row for row in whole["matrices"] if row["name"] == name)
    assert one["tokens"] == whole["tokens"]
    unknown = run("inspect", out, "model.layers.1.mlp.down")
    assert unknown.code == 2
    assert "did you mean" in unknown.err
    assert run("verify", out).code == 0
    data = bytearray(Path(out).read_bytes())
    data[-1] ^= 1
    Path(out).write_bytes(data)
    assert run("verify", out).code == 1


def test_json_and_what_was_not_measured(
    run: Any, tiny_llama: Path, options: list[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "m.stats")
    result = run(
        "calibrate", tiny_llama, *options, "--no-gradients", "--diagonal", "--json", "-o", out
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["path"] == out
    assert report["file_bytes"] == Path(out).stat().st_size
    assert report["matrices"] == 15
    assert set(report["few"]) == {
        row["name"] for row in json.loads(run("inspect", out, "--json").out)["matrices"]
    }
    assert report["unreached"] == report["left_out"] == []
    again = run("calibrate", tiny_llama, *options, "-o", out)
    assert again.code == 6
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("words_given", "code", "message"),
    [
        ([], 2, "no output is named"),
        (["-o", "m.stats"], 2, "no text is given"),
        (["-o", "m.stats", "--text", "x", "--own-text"], 2, "exclude each other"),
        (["-o", "m.stats", "--text", "no.txt"], 14, "there is no such text file"),
        (["-o", "no/m.stats", "--own-text"], 6, "does not exist"),
        (["-o", "m.stats", "--own-text", "--window", "999"], 14, "positions"),
    ],
)
def test_mistakes(
    run: Any,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words_given: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("calibrate", tiny_llama, *words_given)
    assert result.code == code, result.err
    assert message in result.err
    assert result.out == ""
    assert not list(tmp_path.iterdir())


def test_a_compile_names_the_command(run: Any, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "reallm: 1\nstatistics: required\ndefaults:\n  scales: {kind: absmax, per: row}\n"
        "  quantizer: {kind: uniform, bits: 4}\n  rounding: {kind: feedback}\n"
    )
    result = run("compile", recipe, "--model", tiny_llama, "-o", tmp_path / "o.reallm")
    assert result.code == 7
    told = " ".join(result.err.split())
    assert f"reallm calibrate {tiny_llama} --text FILE -o model.stats" in told
    assert "--stats model.stats" in told
    recipe.write_text(recipe.read_text().replace("statistics: required\n", ""))
    result = run("compile", recipe, "--model", tiny_llama, "-o", tmp_path / "o.reallm")
    assert result.code == 3
    assert "r.yaml:5" in result.err
    assert "add `statistics: required`" in " ".join(result.err.split())
