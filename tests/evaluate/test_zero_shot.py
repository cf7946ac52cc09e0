"""Tasks through lm-eval, from local files; the extra may be missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import reallm_compiler as reallm
from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate.zero_shot import zero_shot


@pytest.fixture
def folder(local_task) -> Path:
    rows = [
        {"question": "Anna has", "choices": ["two apples", "no lamp"], "answer": index % 2}
        for index in range(6)
    ]
    return local_task("apples", rows)


def test_a_local_task(tiny_llama: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = zero_shot(tiny_llama, ["apples"], folder=folder)
    assert "loglikelihood" not in capfd.readouterr().err  # no bars unless they are asked for
    assert found.scores["apples"]["acc"] == 0.5  # the same answer to each, right for half
    plain = found.to_json()
    assert plain["shots"] == 0
    assert plain["questions"] == {"apples": 6}
    assert set(plain) == {"tasks", "questions", "shots", "lm_eval"}
    fewer = zero_shot(tiny_llama, ["apples"], folder=folder, limit=4, batch=2, bars=True)
    assert "loglikelihood" in capfd.readouterr().err
    assert fewer.questions == {"apples": 4}
    pears = (folder / "apples.yaml").read_text().replace("task: apples", "task: pears")
    (folder / "pears.yaml").write_text(pears)
    group = "group: fruit\ntask: [apples, pears]\naggregate_metric_list: [{metric: acc}]\n"
    (folder / "fruit.yaml").write_text(group)
    both = zero_shot(tiny_llama, ["fruit"], folder=folder, limit=2)
    assert both.questions == {"apples": 2, "pears": 2, "fruit": 4}
    assert both.scores.keys() == both.questions.keys()


def test_a_packed_archive(
    tiny_llama: Path, folder: Path, tmp_path: Path, tiny_recipe: Path
) -> None:
    path = tmp_path / "model.reallm"
    reallm.compile(tiny_recipe, model=tiny_llama, output=path, workers=1)
    dense = zero_shot(path, ["apples"], folder=folder)
    packed = zero_shot(path, ["apples"], folder=folder, mode="packed")
    assert packed.scores == dense.scores


def test_a_task_that_is_not_known(
    tiny_llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    real = tasks.TaskManager  # the harness's own files are thousands, and take seconds to read
    monkeypatch.setattr(
        tasks, "TaskManager", lambda **more: real(**{**more, "include_defaults": False})
    )
    with pytest.raises(EvaluationError, match="no task is called `pears`"):
        zero_shot(tiny_llama, ["apples", "pears"], folder=folder)


def test_without_the_extra(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EvaluationError, match="lm-eval") as caught:
        zero_shot(tiny_llama, ["apples"])
    assert "reallm-compiler[tasks]" in str(caught.value.hint)
