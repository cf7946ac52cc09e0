"""Compiles that train: left in the midst of a training and gone on with, the bytes are the same."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reallm_compiler.execute.events import Event, Preflight, Training
from reallm_compiler.execute.run import compile_model
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.reader.verify import verify
from reallm_compiler.runs import training
from reallm_compiler.runs.stop import Interrupted

HNERV = {
    "kind": "hnerv",
    "patch": 32,
    "latent": [4, 8, 8],
    "width": 4,
    "min_width": 4,
    "kernel_max": 3,
    "encoder_width": 4,
    "epochs": 12,
    "batch": 2,
}


@pytest.fixture
def recipe() -> Callable[..., dict[str, object]]:
    """recipe(**fields): two matrices of the first layer are trained, all others kept."""

    def make(**fields: object) -> dict[str, object]:
        plan = {
            "autoencoder": HNERV,
            "scales": {"kind": "absmax", "block": 16},
            "quantizer": {"kind": "vq", "bits": 3, "dim": 2},
            **fields,
        }
        trained = ["*.layers.0.self_attn.q_proj", "*.layers.0.self_attn.k_proj"]
        keep = {"match": "*_proj", "except": trained, "keep": "source"}
        return {"reallm": 1, "seed": 3, "defaults": plan, "rules": [keep]}

    return make


@pytest.fixture(autouse=True)
def _reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EMIT_SECONDS", 0.0)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def states(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.state"))


@pytest.mark.parametrize("share", [None, "g"], ids=["own decoders", "one decoder"])
def test_stopped_in_every_training_and_gone_on_with(
    share: str | None, recipe, tiny_llama: Path, tmp_path: Path
) -> None:
    source = recipe(share=share)
    whole = tmp_path / "whole.reallm"
    report = compile_model(source, model=tiny_llama, output=whole, device="cpu")
    assert verify(whole) == []
    with open_archive(whole) as archive:
        assert archive.path.stat().st_size == report.budget.totals.file_bytes
        assert set(report.errors) == set(archive.names)
        assert 0 < max(report.errors.values()) < 1.5

    output = tmp_path / "again.reallm"
    seen: set[tuple[str, int]] = set()

    def stop_once_each(event: Event) -> None:
        if not isinstance(event, Training) or event.epoch not in (4, 10):
            return
        if (event.name, event.epoch) not in seen:
            seen.add((event.name, event.epoch))
            os.kill(os.getpid(), signal.SIGINT)

    def go_on() -> None:
        compile_model(
            source, model=tiny_llama, output=output, device="cpu", on_event=stop_once_each
        )

    for _ in range(6 if share else 4):
        with pytest.raises(Interrupted, match="training under way"):
            go_on()
        assert len(states(tmp_path)) == 1
    go_on()
    assert len(seen) == (6 if share else 4)
    assert digest(output) == digest(whole)
    assert states(tmp_path) == []


def test_a_state_of_another_run_or_a_damaged_one_is_not_taken(
    recipe, tiny_llama: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m.reallm"

    def stop(event: Event) -> None:
        if isinstance(event, Training) and event.epoch == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        compile_model(recipe(), model=tiny_llama, output=output, device="cpu", on_event=stop)
    (state,) = states(tmp_path)
    epochs: list[int] = []

    def stop_at_6(event: Event) -> None:
        if isinstance(event, Training):
            epochs.append(event.epoch)
            if event.epoch == 6:
                os.kill(os.getpid(), signal.SIGINT)

    good = state.read_bytes()
    for data in (good[: len(good) // 2], b"", None):
        if data is None:
            save_file({"epoch": torch.tensor(9)}, state, metadata={"run": "x", "task": "y"})
        else:
            state.write_bytes(data)
        epochs.clear()
        with pytest.raises(Interrupted):
            compile_model(
                recipe(), model=tiny_llama, output=output, device="cpu", on_event=stop_at_6
            )
        assert epochs[0] == 1, "the training began again"
    with pytest.raises(Interrupted):
        compile_model(
            recipe(),
            model=tiny_llama,
            output=output,
            device="cpu",
            resume="never",
            on_event=stop_at_6,
        )
    assert epochs.count(1) == 2, "starting over removes states"


def test_a_trial_measures_the_rate_and_says_what_all_would_take(recipe, tiny_llama: Path) -> None:
    events: list[Event] = []
    report = compile_model(
        recipe(), model=tiny_llama, only="*.q_proj", device="cpu", on_event=events.append
    )
    assert list(report.errors) == ["model.layers.0.self_attn.q_proj"]
    assert report.whole_seconds is not None
    assert report.whole_seconds > report.seconds
    preflight = next(event for event in events if isinstance(event, Preflight))
    trainings = [event for event in events if isinstance(event, Training)]
    assert [event.epoch for event in trainings] == list(range(1, 13))
    assert preflight.operations > trainings[0].operations
    assert trainings[-1].seconds_left == 0
    assert trainings[0].operations_per_second > 0
