"""The studies of the paper's tables: each runs with its smallest setting, on a tiny model."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["table_1", "table_2", "table_3", "table_5", "table_6", "table_7"]
LEAST = (
    "--set", "held_out=1", "--set", "block.epochs=1", "--set", "block.sequences=2",
    "--set", "e2e.steps=1", "--set", "e2e.batch=1", "--set", "e2e.checks=0",
    "--set", "fit.samples=2", "--set", "fit.epochs=1",
)  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a script by name; the lines of its table, as lists of cells."""

    def call(name: str, *args: object, change=None) -> tuple[list[list[str]], str]:
        module: Any = importlib.import_module(f"studies.paper.{name}")
        if change is not None:
            change(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        module.main()
        out = capsys.readouterr().out
        lines = [line for line in out.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines], out

    return call


@pytest.fixture(scope="module")
def small(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Options of a study on the tiny model, with a text of its own."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("\n".join(f"Anna has {n} red apples and gives one to Tom." for n in range(24)))
    return ("--model", tiny_llama, "--text", path, "--tune", path, "--window", 16)


@pytest.fixture(scope="module")
def base_archive(
    tiny_llama: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    import reallm_compiler as reallm

    path = tmp_path_factory.mktemp("archives") / "base.reallm"
    reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu", workers=1)
    return path


def test_table_1_has_a_row_for_each_stage(run, small) -> None:
    rows, out = run("table_1", "--case", 2, *small, *LEAST)
    assert [row[0] for row in rows[1:]] == [
        "original",
        "ReALLM (no fine-tuning)",
        "ReALLM (block-wise)",
        "ReALLM (block-wise, end to end)",
    ]
    assert all(float(row[5]) > 1 for row in rows[1:])
    assert '"steps": 1' in out


def test_table_2_runs_what_a_recipe_can_say(run, small) -> None:
    def fewer(module: Any) -> None:
        whole = module.methods
        module.methods = lambda rank: [
            row for row in whole(rank) if row[0] in ("GPTQ", "Omniquant") or row[:2] == ("LoftQ", 2)
        ]

    rows, _ = run("table_2", *small, *LEAST, change=fewer)
    by_name = {row[0]: row for row in rows[1:]}
    assert float(by_name["Omniquant"][3]) > 1
    assert by_name["Omniquant"][5] == "3.2969"
    assert by_name["GPTQ"][5] == "3.1484"
    assert by_name["GPTQ"][4] == ""
    assert float(by_name["LoftQ"][4]) > 1


@pytest.mark.parametrize("bits", [2, 3])
def test_methods_of_table_2_are_recipes(bits: int) -> None:
    from fractions import Fraction

    import reallm_compiler as reallm

    table: Any = importlib.import_module("studies.paper.table_2")
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads")
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8,
        "num_hidden_layers": 1,
        **dict(zip(sizes, (4096, 4096, 32), strict=True)),
    }
    for name, width, _, recipe, *_ in table.methods(Fraction(1, 64)):
        if width == bits:
            paper = float(reallm.plan(recipe, model=model).budget().totals.paper_bits)
            assert bits <= paper < bits + 0.6, name


def test_table_3_scores_local_tasks(run, small, base_archive: Path, local_task) -> None:
    rows = [{"question": "Anna has", "choices": ["a", "b"], "answer": n % 2} for n in range(4)]
    folder = local_task("arc_easy_tiny", rows)
    given = ("--tasks-folder", folder, "--given", "--archive", f"mine={base_archive}")
    rows, out = run("table_3", *small, *given)
    assert rows[0][3:] == ["arc_easy_tiny", "average"]
    assert [row[0] for row in rows[-2:]] == ["original (ours)", "mine (ours)"]
    assert rows[1][0] == "LLaMA-2 (paper)"
    assert rows[1][3:] == ["76.26", ""]
    assert all(row[3] == "50.00" for row in rows[-2:])
    assert "4 questions of arc_easy_tiny" in out


def test_the_paper_stands_beside_tasks_of_its_names(tmp_path: Path) -> None:
    table: Any = importlib.import_module("studies.paper.table_3")
    (tmp_path / "two.yaml").write_text("group: g\n---\ntask: piqa_local\n")
    (tmp_path / "one.yml").write_text("task: my-own\ndoc_to_text: 'task: no'\n")
    assert table.local_tasks(tmp_path) == ["my-own", "piqa_local"]
    assert table.paper_rows(["my-own"]) == []
    assert table.paper_rows(["my-own", "piqa_local"])[0][3:] == ["", "78.07", ""]
    whole = table.paper_rows([f"{name}_x" for name in table.COLUMNS])
    assert [row[-1] for row in whole] == [f"{scores[-1]:.2f}" for *_, scores in table.PAPER]


def test_table_5_is_sizes_alone(run) -> None:
    rows, out = run("table_5", "--p", 512, "--q", 512, "--decoder-params", 0)
    assert [row[0] for row in rows[1:]] == ["LoRA", "VQ only", "ReALLM"]
    assert rows[2][2] == rows[2][3]  # as printed: our paper bits
    assert "What differs" in out


def test_table_5_needs_no_torch() -> None:
    code = (
        "import sys, studies.paper.table_5 as table; sys.argv = ['t']; table.main(); "
        "sys.exit('torch' in sys.modules)"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "formats")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_table_6_measures_each_method(run, small) -> None:
    def fewer(module: Any) -> None:
        module.METHODS = module.METHODS[:3]

    rows, _ = run("table_6", *small, change=fewer)
    assert [row[0] for row in rows[1:]] == ["LoRA", "GPTQ", "QLoRA"]
    errors = [float(row[5]) for row in rows[1:]]
    assert errors[0] == 0 < errors[1]


def test_methods_of_table_6_are_recipes() -> None:
    import reallm_compiler as reallm

    table: Any = importlib.import_module("studies.paper.table_6")
    for name, _, shipped, _ in table.METHODS:
        budget = reallm.plan(shipped, model=table.SQUARE).budget()
        assert budget.totals.exact_bits > 1, name


def test_table_7_has_the_rows_of_the_paper(run, small) -> None:
    def fewer(module: Any) -> None:
        module.CASES = module.CASES[1:]

    rows, _ = run("table_7", *small, *LEAST, change=fewer)
    assert [row[:4] for row in rows[2:]] == [["ReALLM (no fine-tuning)", "2", "64", "4"]]


@pytest.mark.parametrize("name", NAMES)
def test_each_script_has_a_help(run, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(name, "--help")
    assert caught.value.code == 0
    assert "Table" in capsys.readouterr().out
