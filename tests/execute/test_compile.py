"""Compile: the file is the plan, the same bytes every time, and nothing is ever lost."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler import publish as publish_module
from reallm_compiler.errors import (
    CodecError,
    CompileError,
    OutputError,
    ReallmError,
    ResumeError,
    SourceError,
)
from reallm_compiler.execute import preflight
from reallm_compiler.execute.events import Preflight, TaskDone
from reallm_compiler.execute.runner import CompileRunner
from reallm_compiler.reader.verify import verify
from reallm_compiler.runs.stop import Interrupted
from tests.execute.conftest import compiled


def test_the_file_is_the_plan(tiny_llama: Path, tiny_recipe: Path, reference: bytes) -> None:
    plan = reallm.plan(tiny_recipe, model=tiny_llama)
    assert len(reference) == plan.budget().totals.file_bytes


def test_intact_and_nothing_left_behind(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, reference: bytes
) -> None:
    path = tmp_path / "out.reallm"
    assert compiled(tiny_recipe, tiny_llama, path) == reference
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.reallm"]
    assert verify(path) == []


def test_two_workers_give_the_same_bytes(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, reference: bytes
) -> None:
    assert compiled(tiny_recipe, tiny_llama, tmp_path / "o.reallm", workers=2) == reference


def test_the_callers_torch_settings_come_back_and_change_nothing(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, reference: bytes
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        assert compiled(tiny_recipe, tiny_llama, tmp_path / "o.reallm") == reference
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == "medium"
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_another_seed_gives_other_bytes(tiny_llama: Path, tmp_path: Path, reference: bytes) -> None:
    recipe = {"reallm": 1, "defaults": {"quantizer": {"kind": "vq", "bits": 2, "dim": 4}}}
    one = compiled({**recipe, "seed": 1}, tiny_llama, tmp_path / "1.reallm")
    two = compiled({**recipe, "seed": 2}, tiny_llama, tmp_path / "2.reallm")
    assert len(one) == len(two)
    assert one != two


def test_events_tell_the_story(tiny_llama: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    report = reallm.compile(
        tiny_recipe, model=tiny_llama, output=tmp_path / "o.reallm", on_event=events.append
    )
    first, *rest = events
    assert isinstance(first, Preflight)
    assert all(isinstance(event, TaskDone) for event in rest)
    assert first.file_bytes == report.budget.totals.file_bytes
    assert len(rest) == first.tasks
    assert rest[-1].tasks_done == first.tasks
    assert rest[-1].numel_done == first.numel == report.budget.totals.numel
    assert set(report.errors) == {row.name for row in report.budget.matrices}


class Stopped(Exception):  # noqa: N818 - it stands for a kill, not an error
    """Stands for a kill."""


def stop_after(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    """The run breaks off in the task after so many."""
    original = CompileRunner.run
    left = [tasks]

    def run(self: CompileRunner, task: Any) -> Any:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        return original(self, task)

    monkeypatch.setattr(CompileRunner, "run", run)


@pytest.mark.parametrize("tasks", [0, 1, 7, 14])
def test_a_broken_run_goes_on_and_ends_with_the_same_bytes(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    reference: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tasks: int,
) -> None:
    path = tmp_path / "out.reallm"
    with monkeypatch.context() as patch:
        stop_after(patch, tasks)
        with pytest.raises(Stopped):
            compiled(tiny_recipe, tiny_llama, path)
    assert not path.exists()
    report = reallm.compile(
        tiny_recipe, model=tiny_llama, output=path, resume="required", device="cpu"
    )
    assert report.tasks_resumed == tasks
    assert path.read_bytes() == reference


def test_a_slot_that_changed_meanwhile_is_coded_again(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    reference: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "out.reallm"
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            compiled(tiny_recipe, tiny_llama, path)
    plan = reallm.plan(tiny_recipe, model=tiny_llama)
    victim = plan.layout.sections[f"matrix:{plan.matrices[2].name}/codes"]
    with path.with_name("out.reallm.partial").open("r+b") as file:
        file.seek(victim.offset)
        file.write(b"\x55")
    report = reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu")
    assert report.tasks_resumed == 8
    assert path.read_bytes() == reference


def test_a_run_killed_after_the_rename_is_finished(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    reference: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "out.reallm"

    def stop(folder: Path) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "sync_path", stop)
        with pytest.raises(Stopped):
            compiled(tiny_recipe, tiny_llama, path)
    assert path.exists()
    assert path.with_name("out.reallm.journal").exists()
    assert compiled(tiny_recipe, tiny_llama, path) == reference
    assert not path.with_name("out.reallm.journal").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "recipe"),
        ("compute", "processor"),
        ("torch", "version of torch"),
    ],
)
def test_resume_refuses_other_inputs_and_names_them(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    message: str,
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    path = tmp_path / "out.reallm"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            compiled(tiny_recipe, model, path)
    recipe: Any = tiny_recipe
    if change == "seed":
        recipe = {"reallm": 1, "extends": str(tiny_recipe), "seed": 8}
    elif change == "compute":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    else:
        monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ResumeError, match=message):
        compiled(recipe, model, path)
    compiled(recipe, model, path, resume="never")
    assert verify(path) == []


def test_resume_required_without_an_interrupted_run(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResumeError, match="no interrupted run"):
        compiled(tiny_recipe, tiny_llama, tmp_path / "o.reallm", resume="required")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_archive_is_safe(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "o.reallm"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        compiled(tiny_recipe, tiny_llama, path)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            compiled(tiny_recipe, tiny_llama, path, force=True)
    assert path.read_bytes() == b"precious"
    compiled(tiny_recipe, tiny_llama, path, force=True)
    assert verify(path) == []


def test_the_second_compile_of_one_output_is_refused(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    path = tmp_path / "o.reallm"
    met: list[str] = []

    def meanwhile(event: Any) -> None:
        if isinstance(event, Preflight):
            with pytest.raises(OutputError, match="another run") as caught:
                compiled(tiny_recipe, tiny_llama, path)
            met.append(caught.value.message)

    compiled(tiny_recipe, tiny_llama, path, on_event=meanwhile)
    assert met
    assert verify(path) == []


def test_only_tries_without_writing(tiny_llama: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    report = reallm.compile(tiny_recipe, model=tiny_llama, only="*.layers.1.*_proj", device="cpu")
    assert report.path is None
    assert len(report.errors) == 7
    assert all(0 < error < 1 for error in report.errors.values())
    with pytest.raises(CompileError, match="matches no coded matrix") as caught:
        reallm.compile(tiny_recipe, model=tiny_llama, only="model.layers.0.mlp.upproj")
    assert "up_proj" in str(caught.value.hint)


def test_a_stop_signal_ends_within_a_matrix(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, reference: bytes
) -> None:
    import os
    import signal

    path = tmp_path / "o.reallm"

    def interrupt(event: Any) -> None:
        if isinstance(event, TaskDone) and event.tasks_done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        compiled(tiny_recipe, tiny_llama, path, on_event=interrupt)
    assert "same command again" in str(caught.value.hint)
    report = reallm.compile(tiny_recipe, model=tiny_llama, output=path, resume="required")
    assert report.tasks_resumed == 4
    assert path.read_bytes() == reference


def broken(tiny_llama: Path, folder: Path, name: str, change: Any) -> Path:
    """A copy of the model in which one tensor was changed."""
    model = shutil.copytree(tiny_llama, folder / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def with_value(row: int, column: int, value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[row, column] = value
        return tensor

    return change


@pytest.mark.parametrize(("value", "workers"), [(math.nan, 1), (math.inf, 1), (math.nan, 2)])
def test_a_weight_that_is_no_number_is_named(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, value: float, workers: int
) -> None:
    model = broken(tiny_llama, tmp_path, K_PROJ, with_value(3, 5, value))
    with pytest.raises(CodecError, match="row 3, column 5") as caught:
        compiled(tiny_recipe, model, tmp_path / "o.reallm", workers=workers)
    assert K_PROJ.removesuffix(".weight") in str(caught.value.location)


def test_a_matrix_of_zeros_comes_back_as_zeros(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    model = broken(tiny_llama, tmp_path, K_PROJ, torch.zeros_like)
    compiled(tiny_recipe, model, tmp_path / "o.reallm")
    with reallm.open(tmp_path / "o.reallm") as archive:
        name = K_PROJ.removesuffix(".weight")
        assert not archive.matrix(name).any()
        assert archive.errors[name] == 0.0


@pytest.mark.parametrize("equal", [True, False])
def test_tied_tensors_that_differ_are_refused(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, equal: bool
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    if not equal:
        head[0, 0] += 1
    save_file({**tensors, "lm_head.weight": head}, model / "model.safetensors")
    if equal:
        compiled(tiny_recipe, model, tmp_path / "o.reallm")
    else:
        with pytest.raises(SourceError, match="two different tensors"):
            compiled(tiny_recipe, model, tmp_path / "o.reallm")
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_shard_that_shrinks_while_compiling(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    shard = model / "model.safetensors"
    whole = shard.read_bytes()

    def cut(event: Any) -> None:
        if isinstance(event, TaskDone) and event.tasks_done == 3:
            shard.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(SourceError, match=r"ends .* bytes before") as caught:
        compiled(tiny_recipe, model, tmp_path / "o.reallm", on_event=cut)
    assert "model.safetensors" in str(caught.value.location)
    assert (tmp_path / "o.reallm.journal").exists()


def test_a_bare_config_cannot_be_compiled(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no weights"):
        reallm.compile({"reallm": 1}, model={"shapes": {"a.weight": [4, 4]}}, output=tmp_path / "o")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"device": "cuda"}, CompileError, "no usable CUDA device"),
        ({"device": "tpu9"}, CompileError, "is not a device"),
        ({"output": "missing/folder/o.reallm"}, OutputError, "folder does not exist"),
        ({"output": None}, OutputError, "no output is named"),
        ({"model": None}, SourceError, "no model is named"),
    ],
)
def test_what_cannot_start_says_why(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    kind: type[ReallmError],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"model": tiny_llama, "output": "o.reallm", "device": "cpu", **options}
    with pytest.raises(kind, match=message):
        reallm.compile(tiny_recipe, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_too_little_space_is_known_before_the_start(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    if what == "memory":
        monkeypatch.setattr(preflight, "free_memory", lambda: 1 << 20)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(CompileError, match=f"{what} is too small"):
        compiled(tiny_recipe, tiny_llama, tmp_path / "o.reallm")
    assert list(tmp_path.iterdir()) == []
