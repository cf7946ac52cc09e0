"""`reallm allocate` from the command line: the recipes that it writes, and files made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reallm_cli.commands.allocate import AllocateReporter
from reallm_cli.main import main
from reallm_cli.terminal import Terminal
from reallm_compiler.recipe import load_recipe

RECIPE = """
reallm: 1
model: MODEL
defaults:
  scales: {kind: absmax, per: row, dtype: float16}
  quantizer: {kind: uniform, bits: 4}
rules:
  - {role: embedding, set: {quantizer: {bits: 8}}}
allocate:
  bytes: 100kB
  candidates:
    - {quantizer: {bits: [2, 3, 4, 5]}}
    - {match: "*.down_proj", set: {quantizer: {bits: 2}, residual: {kind: low_rank, rank: [2, 4]}}}
    - {role: embedding, set: {quantizer: {bits: 8}}}
  groups: [[q_proj, k_proj, v_proj], [gate_proj, up_proj]]
  lock: ["*.layers.0.self_attn.o_proj"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llama) -> Path:
    """A folder with the recipe, and a cache in it."""
    path = tmp_path_factory.mktemp("allocate")
    (path / "choose.yaml").write_text(RECIPE.replace("MODEL", str(tiny_llama)))
    return path


@pytest.fixture
def run(capsys, folder, tiny_statistics):
    """Runs `reallm allocate` on the tiny model: exit code, stdout, stderr."""

    def call(*args, source="choose.yaml", command="allocate", more=("--cache", "cache")):
        capsys.readouterr()
        words = [command, folder / source, *args]
        if more:
            words += [more[0], folder / more[1], "--stats", tiny_statistics, "--workers", 1]
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("scope", ["file", "coded"])
def test_the_file_that_is_compiled_has_the_planned_bytes(run, folder, tmp_path, capsys, scope):
    lock = tmp_path / "lock.yaml"
    size = 100_000 if scope == "file" else 60_000
    code, out, err = run("--bytes", size, "--scope", scope, "-o", lock, "--json")
    assert code == 0, err
    report = json.loads(out)["targets"][0]
    archive = tmp_path / "model.reallm"
    assert main(["compile", str(lock), *model_of(folder), "-o", str(archive)]) == 0
    assert archive.stat().st_size == report["file_bytes"]
    assert size - 3000 < report["bytes"] == report[f"{scope}_bytes"] <= size
    capsys.readouterr()
    assert main(["inspect", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["exact_bits"] == report["exact_bits"]


def model_of(folder: Path) -> tuple[str, str]:
    return "--model", str(load_recipe(folder / "choose.yaml").model)


def test_the_recipe_says_what_was_chosen(run, tmp_path):
    lock = tmp_path / "lock.yaml"
    code, out, err = run("-o", lock, "--json")
    assert code == 0, err
    report = json.loads(out)["targets"][0]
    chosen = {row["name"]: row["candidate"] for row in report["matrices"]}
    assert len(chosen) == 14  # two layers of seven, less the one that is locked, and embeddings
    for layer in range(2):
        start = f"model.layers.{layer}"
        assert len({chosen[f"{start}.self_attn.{one}_proj"] for one in "qkv"}) == 1
        assert chosen[f"{start}.mlp.gate_proj"] == chosen[f"{start}.mlp.up_proj"]
    text = lock.read_text()
    assert "layers.0.self_attn.o_proj" not in text
    assert f"# Size:    {report['file_bytes']:,} bytes, " in text
    for row in report["matrices"]:
        line = next(one for one in text.splitlines() if one.strip().startswith(f"- {row['name']} "))
        assert line.endswith(f"  # {row['exact_bits']:.4f} bits, KL {row['kl']:.3g}")
    said = sum(row["kl"] for row in report["matrices"])
    assert report["kl"] == pytest.approx(said, rel=1e-9)
    assert {label: one["matrices"] for label, one in report["candidates"].items()} == {
        label: list(chosen.values()).count(label) for label in dict.fromkeys(chosen.values())
    }
    again = tmp_path / "again.yaml"
    assert run("-o", again)[0] == 0
    assert again.read_bytes() == lock.read_bytes()


def test_several_targets_have_a_recipe_each_and_more_bytes_less_damage(run, tmp_path):
    lock, plot = tmp_path / "lock.yaml", tmp_path / "frontier.png"
    code, out, err = run("--bits", "7/2,4, 4.5", "-o", lock, "--plot", plot)
    assert code == 0, err
    names = ["lock-3.5bits.yaml", "lock-4bits.yaml", "lock-4.5bits.yaml"]
    assert sorted(path.name for path in tmp_path.glob("*.yaml")) == sorted(names)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert [line.split()[-1] for line in out.splitlines() if "lock-" in line] == [
        str(tmp_path / name) for name in names
    ]
    assert "frontier, by the bytes of the coded matrices" in out
    assert "mix" in out
    code, out, _ = run("--bits", "7/2,4,4.5", "--json")
    report = json.loads(out)
    losses = [target["kl"] for target in report["targets"]]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 3
    for points in (report["frontier"], report["uniform"]):
        assert [one["bytes"] for one in points] == sorted(one["bytes"] for one in points)
    assert [target["recipe"] for target in report["targets"]] == [None] * 3


def test_a_target_that_is_too_small_names_the_one_that_can_be_met(run, tmp_path):
    code, _, err = run("--bytes", "20kB")
    assert code == 16
    least = err.partition("take `bytes: ")[2].partition("`")[0]
    code, out, err = run("--bytes", least, "-o", tmp_path / "lock.yaml", "--json")
    assert code == 0, err
    assert json.loads(out)["targets"][0]["file_bytes"] == int(least)
    assert run("--bytes", int(least) - 1, "-o", tmp_path / "other.yaml")[0] == 16
    assert not (tmp_path / "other.yaml").exists()


def test_a_target_beyond_the_largest_gets_the_best_everywhere(run):
    code, out, _ = run("--bytes", "1MB", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["targets"][0]["kl"] == report["frontier"][-1]["kl"]


def test_without_statistics_the_model_runs_on_its_own_text(run, folder, tmp_path):
    more = ["--workers", 1, "--cache", folder / "cache", "-o", tmp_path / "lock.yaml"]
    code, _, err = run(*more, more=())
    assert code == 0, err
    assert load_recipe(tmp_path / "lock.yaml").statistics == "none"


@pytest.mark.parametrize("command", ["compile", "budget"])
def test_a_recipe_that_leaves_the_choice_open_is_not_compiled(run, command):
    code, _, err = run(command=command, more=())
    assert code == 3
    assert "choose.yaml" in err
    assert "`reallm allocate RECIPE --model MODEL -o lock.yaml`" in err


MISTAKES = {
    "no target": ("  bytes: 100kB\n", "", [], 16, "no target is given"),
    "two kinds of targets": ("", "", ["--bytes", "1MB", "--bits", "2"], 16, "both are given"),
    "no size": ("", "", ["--bytes", "3.2 tons"], 16, "expected a size such as `3.2GB`"),
    "no rate": ("", "", ["--bits", "two"], 16, "expected a number or a fraction"),
    "too many bits": ("", "", ["--bits", "100"], 16, "up to 64"),
    "a group of nothing": ("up_proj]]", "upproj]]", [], 3, "did you mean `up_proj`?"),
    "a lock of nothing": ("0.self_attn.o_proj", "7.*", [], 3, "matches no coded matrix"),
    "a rule of nothing": ("*.down_proj", "*.downproj", [], 3, "allocate.candidates[1].match"),
    "statistics": ("bits: [2, 3", "paths: 4, bits: [2, 3", [], 3, "`paths` is not a parameter"),
}


@pytest.mark.parametrize(("old", "new", "args", "code", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(run, folder, old, new, args, code, said):
    text = (folder / "choose.yaml").read_text()
    assert old in text
    (folder / "wrong.yaml").write_text(text.replace(old, new, 1) if old else text)
    found, _, err = run(*args, source="wrong.yaml")
    assert found == code, err
    assert said in err


def test_a_recipe_without_candidates_is_refused(run, folder):
    text = (folder / "choose.yaml").read_text()
    (folder / "plain.yaml").write_text(text.partition("allocate:")[0])
    code, _, err = run("--bytes", "1MB", source="plain.yaml")
    assert code == 16
    assert "no section `allocate`" in err


def test_progress_counts_weights_and_then_runs_of_the_model(capsys):
    with AllocateReporter(Terminal()) as reporter:
        for done, total in ((0, 90), (90, 90), (0, 3), (1, 3), (3, 3)):
            reporter.on_progress(done, total)
            labels = reporter._step
            assert labels == ("measure" if total == 90 else "run")
