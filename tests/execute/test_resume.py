"""A resumed compile holds one model: whatever changed under the same length and time is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import ResumeError, SourceError
from reallm_compiler.execute.events import Checked, TaskDone
from reallm_compiler.runs.training import StateFiles

PLAIN = {"scales": {"kind": "absmax"}, "quantizer": {"kind": "uniform", "bits": 4}}
SHARED = {
    "scales": {"kind": "absmax"},
    "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
    "share": "all",
}


Negate = Callable[[Path, str], None]
Unnoticed = Callable[[Path, bytes], None]


class Stopped(Exception):  # noqa: N818 - it stands for a kill, not an error
    pass


def recipe(defaults: dict[str, Any]) -> dict[str, Any]:
    return {"reallm": 1, "defaults": defaults}


def compiled(model: Path, output: Path, defaults: dict[str, Any] = PLAIN, **options: Any) -> Any:
    options = {"device": "cpu", "workers": 1} | options
    return reallm.compile(recipe(defaults), model=model, output=output, **options)


def interrupted(model: Path, output: Path, tasks: int, defaults: dict[str, Any] = PLAIN) -> None:
    """A compile that is lost after so many tasks."""

    def stop(event: Any) -> None:
        if isinstance(event, TaskDone) and event.tasks_done == tasks:
            raise Stopped

    with pytest.raises(Stopped):
        compiled(model, output, defaults, on_event=stop)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
        ("tokenizer_config.json", '"model_max_length": 128', '"model_max_length": 127'),
    ],
)
def test_a_small_file_that_changed_under_the_same_length(
    model: Path, tmp_path: Path, name: str, old: str, new: str, write_unnoticed: Unnoticed
) -> None:
    path, output = model / name, tmp_path / "o.reallm"
    interrupted(model, output, 3)
    text = path.read_text()
    assert old in text
    write_unnoticed(path, text.replace(old, new).encode())
    with pytest.raises(ResumeError, match=rf"config and tokenizer files \({name}\)"):
        compiled(model, output)
    write_unnoticed(path, text.encode())
    assert compiled(model, output).tasks_resumed == 3


def test_a_weight_that_a_finished_matrix_read(model: Path, tmp_path: Path, negate: Negate) -> None:
    output = tmp_path / "o.reallm"
    interrupted(model, output, 3)
    done = reallm.plan(recipe(PLAIN), model=model).matrices[1].tensor
    negate(model, done)
    with pytest.raises(ResumeError, match="weights have changed") as caught:
        compiled(model, output)
    assert done in caught.value.message
    negate(model, done)
    events: list[Any] = []
    assert compiled(model, output, on_event=events.append).tasks_resumed == 3
    checked = [event for event in events if isinstance(event, Checked)]
    assert [(event.tasks_done, event.tasks) for event in checked] == [(1, 3), (2, 3), (3, 3)]


def test_a_kept_tensor(model: Path, tmp_path: Path, negate: Negate) -> None:
    output = tmp_path / "o.reallm"
    interrupted(model, output, 1)
    negate(model, "model.norm.weight")
    with pytest.raises(ResumeError, match=r"model\.norm\.weight"):
        compiled(model, output)


def test_a_weight_that_only_the_group_read(model: Path, tmp_path: Path, negate: Negate) -> None:
    output = tmp_path / "o.reallm"
    interrupted(model, output, 2, SHARED)  # the copies and the group's codebook
    last = reallm.plan(recipe(SHARED), model=model).matrices[-1].tensor
    negate(model, last)
    with pytest.raises(ResumeError, match=last.replace(".", r"\.")):
        compiled(model, output, SHARED)


def test_a_weight_that_changes_while_a_compile_runs(
    model: Path, tmp_path: Path, negate: Negate
) -> None:
    last = reallm.plan(recipe(SHARED), model=model).matrices[-1].tensor

    def change(event: Any) -> None:
        if isinstance(event, TaskDone) and event.tasks_done == 2:
            negate(model, last)

    with pytest.raises(SourceError, match="has changed while it was read") as caught:
        compiled(model, tmp_path / "o.reallm", SHARED, on_event=change)
    assert last in caught.value.message


def test_what_nothing_has_read_yet_may_change(model: Path, tmp_path: Path, negate: Negate) -> None:
    output = tmp_path / "o.reallm"
    interrupted(model, output, 3)
    negate(model, reallm.plan(recipe(PLAIN), model=model).matrices[-1].tensor)
    (model / "model.safetensors").touch()
    assert compiled(model, output).tasks_resumed == 3
    compiled(model, tmp_path / "fresh.reallm")
    assert output.read_bytes() == (tmp_path / "fresh.reallm").read_bytes()


def test_the_header_of_a_shard(model: Path, tmp_path: Path, write_unnoticed: Unnoticed) -> None:
    """Two tensors of one shape whose bytes change places, in the header alone."""
    output, path = tmp_path / "o.reallm", model / "model.safetensors"
    interrupted(model, output, 1)
    names = [f"model.layers.{layer}.mlp.up_proj.weight".encode() for layer in (0, 1)]
    data = path.read_bytes()
    swapped = data.replace(names[0], b"?" * len(names[0])).replace(names[1], names[0])
    swapped = swapped.replace(b"?" * len(names[0]), names[1])
    write_unnoticed(path, swapped)
    with pytest.raises(ResumeError, match=r"checkpoint's files \(model\.safetensors\)"):
        compiled(model, output)


def test_a_finished_archive_whose_journal_was_left(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, negate: Negate
) -> None:
    output = tmp_path / "o.reallm"

    def stop(path: Path) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("reallm_compiler.publish.sync_path", stop)
        with pytest.raises(Stopped):
            compiled(model, output)
    negate(model, "model.norm.weight")
    with pytest.raises(ResumeError, match="weights have changed"):
        compiled(model, output)


def test_the_state_of_a_training_belongs_to_its_weights(tmp_path: Path) -> None:
    states = StateFiles(tmp_path / "o.partial", run="r")
    states.save("matrix:w", "a", {"x": torch.ones(1)})
    assert states.load("matrix:w", "a") is not None
    assert states.load("matrix:w", "b") is None
    assert states.load("matrix:v", "a") is None
