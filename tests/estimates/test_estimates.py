"""What the steps take: operations of every kind, tasks on workers, and what was not measured."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from benchmarks.rates import fitted
from reallm_compiler.estimates import rates as module
from reallm_compiler.estimates.nodes import Machine, Task, makespan
from reallm_compiler.estimates.rates import Point, measured_rates
from reallm_compiler.estimates.steps import steps
from reallm_compiler.estimates.work import all_of, compile_work, running_weights
from reallm_compiler.recipe.shipped import list_shipped
from reallm_compiler.storage.work import times, total

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize("recipe", list_shipped())
def test_every_shipped_recipe_is_measured(recipe: str, config: Path) -> None:
    work = all_of(compile_work(reallm.plan(recipe, model=config), CONFIG))
    assert measured_rates().missing(work) == set()
    assert measured_rates().seconds(work)


def test_work_of_a_compile_is_that_of_its_matrices(config: Path) -> None:
    plan = reallm.plan("reallm-2bit-tunable", model=config)
    work = compile_work(plan)
    assert len(work.matrices) == len(plan.matrices)
    assert set(work.groups) == {"model"}
    whole = all_of(work)
    assert whole == total([*work.groups.values(), *(one for one, _ in work.matrices), work.copied])
    assert whole["matrices"] == len(plan.matrices)
    matrix = plan.by_name["model.layers.0.self_attn.q_proj"]
    assert matrix.layout.work["codewords"] == 256 * 256 * 256  # vectors x words x dimensions
    assert times(2, {"codewords": 3}) == {"codewords": 6}


def test_experts_count_as_tokens_meet_them(config: Path) -> None:
    plan = reallm.plan("nf4", model=config)
    blocks, head = running_weights(plan, CONFIG)
    assert blocks == 2 * (4 * 256 * 256 + 3 * 256 * 512)
    assert head == 512 * 256


def test_rates_are_found_again() -> None:
    """Timings made of known costs, one of which is nothing beside the others."""
    costs = {"a": 2e-9, "b": 5e-7, "c": 0.0}
    works = [
        {"a": 10**9, "b": 10, "c": 5},
        {"a": 10**7, "b": 10**6, "c": 100},
        {"a": 10**8, "b": 10**5},
        {"c": 7, "b": 2 * 10**6},
    ]
    points = tuple(
        Point(title=str(one), seconds=sum(one[k] * costs[k] for k in one), work=one)
        for one in works
    )
    found = fitted(points)
    assert {name: pytest.approx(value, rel=1e-3, abs=1e-11) for name, value in found.items()} == (
        costs
    )


@pytest.mark.parametrize(
    ("tasks", "workers", "seconds"),
    [
        ([Task(4.0), Task(3.0), Task(3.0)], 1, 10.0),
        ([Task(3.0), Task(3.0), Task(4.0)], 2, 6.0),
        ([Task(3.0, after="g"), Task(3.0, after="g"), Task(2.0, key="g")], 2, 5.0),
        ([Task(3.0, after="g"), Task(2.0, key="g"), Task(9.0)], 4, 9.0),
        ([], 3, 0.0),
    ],
)
def test_when_the_last_task_ends(tasks: list[Task], workers: int, seconds: float) -> None:
    assert makespan(tasks, workers) == seconds


def test_more_nodes_take_less_time_and_what_is_not_measured_is_not_said(config: Path) -> None:
    plan = reallm.plan("reallm-2bit", model=config)
    rates = measured_rates()
    machine = Machine(cores=2)
    found = steps(plan, CONFIG, (1, 4), machine, rates)
    assert [(step.name, step.nodes) for step in found] == [
        ("calibrate", 1),
        ("calibrate", 4),
        ("compile", 1),
        ("compile", 4),
    ]
    one, four = found[2:]
    assert (one.workers, four.workers) == (2, 8)
    assert one.hours is not None
    assert four.hours is not None
    assert four.hours < one.hours
    assert one.network_bytes == 0 < four.network_bytes
    assert one.dollars == pytest.approx(2 * one.hours * machine.core_price)
    assert all(step.gpu_hours is None for step in found)
    known = {name: cost for name, cost in rates.costs.items() if name != "paths"}
    blind = steps(plan, CONFIG, (1,), machine, replace(rates, costs=known))[-1]
    assert (blind.hours, blind.cpu_hours, blind.dollars) == (None, None, None)
    assert blind.unmeasured == ("paths",)


def test_a_gpu_is_an_assumption(config: Path) -> None:
    plan = reallm.plan("reallm-2bit-tunable", model=config)
    found = steps(plan, CONFIG, (1,), Machine(gpu_flops=1e12), measured_rates())
    assert [step.name for step in found] == ["compile", "tune by blocks", "tune end to end"]
    assert [step.gpu_hours is None for step in found] == [True, False, False]
    assert found[2].gpu_dollars == pytest.approx(4 * (found[2].gpu_hours or 0))


def test_the_file_of_rates_is_what_is_read() -> None:
    path = Path(module.__file__).with_name(module.FILE)
    plain: dict[str, Any] = json.loads(path.read_text())
    assert module.rates_of(plain).to_json() == plain


def docs() -> Any:
    """The script that writes the tables of docs/scale.md."""
    home = Path(__file__).parents[2] / "docs" / "scale_tables.py"
    spec = importlib.util.spec_from_file_location("scale_tables", home)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("name", ["rates", "timings", "llama_7b"])
def test_the_page_shows_what_the_command_says(name: str) -> None:
    script = docs()
    stale = "scale.md is out of date; run: python docs/scale_tables.py --write"
    assert script.part(name) in script.PAGE.read_text(), stale
