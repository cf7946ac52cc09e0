"""Tuning and adapters from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reallm_cli.exit_codes import ExitCode

FAST = (
    "--window", "16", "--set", "held_out=2", "--set", "block.epochs=1", "--set", "block.lr=1e-3",
    "--set", "e2e.steps=2", "--set", "e2e.batch=2", "--set", "e2e.accumulation=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def adapter(archive: Path, tiny_llama: Path, text: Path, tmp_path_factory) -> Path:
    from reallm_cli.main import main

    path = tmp_path_factory.mktemp("adapters") / "one.adapter"
    args = ["finetune", archive, "--model", tiny_llama, "--text", text, "-o", path, *FAST]
    assert main([str(word) for word in args]) == 0
    return path


def test_tuning_tells_and_writes(run, archive, tiny_llama, text, tmp_path):
    result = run(
        "finetune", archive, "--model", tiny_llama, "--text", text, "-o", tmp_path / "a", *FAST
    )
    assert result.code == 0
    assert "block 2 of 2" in result.err
    assert "step 2 of 2" in result.err
    assert "held-out loss end to end" in result.out
    assert "rounding of the factors" in result.out
    assert (tmp_path / "a").exists()


def test_tuning_as_json(run, archive, tiny_llama, text, tmp_path):
    args = ("--stage", "e2e", "--into", "--json")
    path = tmp_path / "new.reallm"
    result = run(
        "finetune", archive, "--model", tiny_llama, "--text", text, "-o", path, *FAST, *args
    )
    assert result.code == 0
    assert result.json["path"] == str(path)
    assert result.json["blocks"] == []
    assert result.json["file_bytes"] == path.stat().st_size
    assert run("verify", path).code == 0


def test_adapters_are_inspected_verified_and_evaluated(run, archive, adapter, text, tmp_path):
    shown = run("inspect", adapter)
    assert shown.code == 0
    base = run("inspect", archive, "--json").json["digest"]
    assert base in shown.out
    assert "model.layers.1.mlp.down_proj" in shown.out
    whole = run("inspect", adapter, "--json").json
    assert whole["kind"] == "adapter"
    assert whole["base"] == base
    assert whole["settings"]["e2e"]["steps"] == 2
    assert whole["file_bytes"] == adapter.stat().st_size
    one = run("inspect", adapter, "model.layers.0.self_attn.q_proj", "--json").json
    assert one["rank"] == 2
    assert "did you mean" in run("inspect", adapter, "model.layers.0.self_attn.q").err
    assert run("verify", adapter).out.startswith("intact")
    plain = run("eval", archive, "--text", text, "--window", 32, "--json").json
    tuned = run("eval", archive, "--adapter", adapter, "--text", text, "--window", 32, "--json")
    # Two steps on random weights need not be better yet, only used.
    assert tuned.json["perplexity"] != plain["perplexity"]
    folder = tmp_path / "model"
    assert run("reconstruct", archive, "--adapter", adapter, "-o", folder).code == 0
    again = run("eval", folder, "--text", text, "--window", 32, "--json").json
    assert again["perplexity"] == pytest.approx(tuned.json["perplexity"], rel=0.02)


def test_learning_what_is_no_factor(run, archive, tiny_llama, text, tmp_path):
    path = tmp_path / "norms.adapter"
    words = ("--stage", "e2e", "--learn", "norms, scales")
    given = ("finetune", archive, "--model", tiny_llama, "--text", text, "-o", path)
    assert run(*given, *FAST, *words).code == 0
    shown = run("inspect", path).out
    assert "replaced section" in shown
    assert "tensor:model.norm.weight" in shown
    whole = run("inspect", path, "--json").json
    assert whole["settings"]["learn"] == ["scales", "norms"]
    assert whole["matrices"] == []
    norm = next(one for one in whole["replaced"] if one["name"] == "tensor:model.norm.weight")
    assert norm["bytes"] == 2 * norm["shape"][0]
    assert run("eval", archive, "--adapter", path, "--text", text, "--window", "16").code == 0
    wrong = run(*given, "--learn", "magic", "--force")
    assert wrong.code == ExitCode.CANNOT_FINETUNE
    assert "learn" in wrong.err


def test_an_adapter_of_another_base(run, archive, adapter, tiny_recipe, tiny_llama, tmp_path, text):
    other = tmp_path / "other.reallm"
    recipe = tmp_path / "other.yaml"
    recipe.write_text(tiny_recipe.read_text().replace("seed: 7", "seed: 9"))
    run("compile", recipe, "--model", tiny_llama, "-o", other, "--workers", "1")
    result = run("eval", other, "--adapter", adapter, "--text", text)
    assert result.code == ExitCode.BAD_ADAPTER
    assert "another base" in result.err


def test_to_peft_and_back(run, archive, adapter, tmp_path):
    folder = tmp_path / "peft"
    assert run("adapter", "export", archive, "--adapter", adapter, "-o", folder).code == 0
    assert (folder / "adapter_config.json").exists()
    back = tmp_path / "back.adapter"
    result = run("adapter", "import", archive, folder, "-o", back)
    assert result.code == 0
    assert "at most 0.000 %" in result.out
    shutil.rmtree(folder)
    assert run("adapter", "import", archive, folder, "-o", back).code == ExitCode.BAD_OUTPUT
    missing = run("adapter", "import", archive, folder, "-o", back, "--force")
    assert missing.code == ExitCode.BAD_ADAPTER


@pytest.mark.parametrize("subject", ["archive", "recipe"])
def test_memory_before(run, archive, tiny_recipe, tiny_llama, subject):
    what = archive if subject == "archive" else tiny_recipe
    model = tiny_llama / "config.json" if subject == "recipe" else tiny_llama
    args = ("--dry-run", "--set", "e2e.loss=distill")
    table = run("finetune", what, "--model", model, *args)
    assert table.code == 0
    for word in ("coded weights", "optimizer states", "one original block", "logits", "all"):
        assert word in table.out
    found = run("finetune", what, "--model", model, *args, "--json").json
    for terms in found["stages"].values():
        assert sum(size for name, size in terms.items() if name != "total") == terms["total"]
    assert found["peak_bytes"] == max(terms["total"] for terms in found["stages"].values())


def test_memory_before_downloads_no_weights(run, tiny_recipe, tiny_llama, tmp_path, monkeypatch):
    from reallm_compiler.checkpoint import hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "describe", lambda text, *, hint: (tiny_llama, None))
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("weights were downloaded"))
    assert run("finetune", tiny_recipe, "--model", "org/name", "--dry-run").code == 0


def test_settings_come_from_the_recipe_and_from_options(run, tiny_recipe, tiny_llama, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"reallm: 1\nextends: {tiny_recipe}\nfinetune: {{window: 32, stages: [e2e]}}\n"
    )
    args = ("finetune", recipe, "--model", tiny_llama / "config.json", "--dry-run", "--json")
    estimate = run(*args).json
    assert (estimate["window"], set(estimate["stages"])) == (32, {"e2e"})
    given = ("--window", 16, "--stage", "block", "--set", "block.betas=[0.9, 0.95]")
    won = run(*args, *given, "--set", "block.lr=1e-3", "--set", "separator='1'").json
    assert (won["window"], set(won["stages"])) == (16, {"block"})
    path = tmp_path / "told.reallm"
    assert run("compile", recipe, "--model", tiny_llama, "-o", path, "--workers", 1).code == 0
    shown = run("inspect", path)
    assert "finetune: {stages: [e2e], window: 32}" in shown.out
    assert run("finetune", path, *args[2:]).json == estimate


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], ExitCode.USAGE, "no output is named"),
        (["-o", "x", "--set", "lr"], ExitCode.USAGE, "has no value"),
        (["-o", "x", "--set", "block.betas=[1"], ExitCode.USAGE, "`--set block.betas=[1`: a `,`"),
        (["-o", "x", "--set", "seed=1e999"], ExitCode.USAGE, "out of range"),
        (["-o", "x", "--set", "lr=1"], ExitCode.CANNOT_FINETUNE, "under `finetune.block` or"),
        (["-o", "x", "--set", "e2e.lrr=1"], ExitCode.CANNOT_FINETUNE, "e2e.lrr"),
        (["-o", "x", "--stage", "other"], ExitCode.CANNOT_FINETUNE, "stages"),
        (["-o", "x"], ExitCode.CANNOT_FINETUNE, "no text is given"),
    ],
    ids=["output", "value", "yaml", "number", "home", "setting", "stage", "text"],
)
def test_mistakes(run, archive, tiny_llama, tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    result = run("finetune", archive, "--model", tiny_llama, *args)
    assert result.code == code
    assert message in result.err
    assert result.out == ""
