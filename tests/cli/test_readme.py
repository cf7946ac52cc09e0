"""Every command of the README, as it stands there, on a small model at `path/to/checkpoint`."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.codecs.quantizers import trellis_table
from reallm_compiler.distribution import NAME
from reallm_compiler.reader.verify import verify

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found, f"the README has no {language}"
    return found


def lines(*, of: str) -> list[list[str]]:
    """The lines of all sh blocks whose first word this is, as a shell splits them."""
    shown = "\n".join(blocks("sh")).split("\n")
    split = [shlex.split(line, comments=True) for line in shown]
    return [args for args in split if args[:1] == [of]]


def test_every_line_of_a_shell_block_is_a_command_that_is_tried_here() -> None:
    shown = sum(bool(line.strip()) for block in blocks("sh") for line in block.split("\n"))
    assert shown == len(lines(of="reallm")) + len(lines(of="make"))


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README supposes it: a checkpoint and a text; tables learn from little."""
    monkeypatch.setattr(trellis_table, "sample_segments", lambda *_: 8)
    shutil.copytree(tiny_llama, tmp_path / "path" / "to" / "checkpoint")
    sentences = [f"Anna has {count} red apples and gives one to Tom." for count in range(400)]
    (tmp_path / "text.txt").write_text("\n".join(sentences))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_do_what_they_say(run: Any, folder: Path) -> None:
    results = {}
    for args in lines(of="reallm"):
        result = run(*args[1:])
        assert result.code == 0, (args, result.err)
        results[args[1]] = result
    assert "reallm-2bit" in results["recipes"].out
    assert "perplexity" in results["eval"].out
    assert verify("model.reallm") == []
    assert verify("tuned.adapter") == []
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained("model-folder")
    reallm.load("tunable.reallm", adapter="tuned.adapter")


def test_the_python_runs_as_a_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("python")
    (folder / "script.py").write_text(block + "\nprint(type(model).__name__, weight.shape)\n")
    runpy.run_path("script.py", run_name="__main__")
    shown = capsys.readouterr().out.splitlines()
    assert "[]" in shown
    assert int(shown[0]) == (folder / "model.reallm").stat().st_size
    assert shown[-1] == "LlamaForCausalLM torch.Size([64, 64])"


def test_the_recipe_compiles(folder: Path) -> None:
    for number, block in enumerate(blocks("yaml")):
        path = folder / f"recipe-{number}.yaml"
        path.write_text(block)
        plan = reallm.plan(path, model="path/to/checkpoint")
        statistics = None
        if reallm.load_recipe(path).statistics == "required":
            statistics = "model.stats"
            reallm.calibrate("path/to/checkpoint", text="text.txt", output=statistics, force=True)
        reallm.compile(
            path,
            model="path/to/checkpoint",
            output=f"{number}.reallm",
            statistics=statistics,
            workers=1,
        )
        assert (folder / f"{number}.reallm").stat().st_size == plan.layout.file_bytes


def test_make_knows_its_targets_and_pip_its_extras() -> None:
    for args in lines(of="make"):
        done = subprocess.run(
            ["make", "--dry-run", *args[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"pip install '\.\[(.*?)\]'", README)
    assert named
    for extras in named:
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert f"`{NAME}`" in README


def test_linked_files_are_there() -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []
