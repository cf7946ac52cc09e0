"""Killed, stopped, continued: the same bytes; or refused, where the inputs are others."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.calibration.events import ChunkDone, Started
from reallm_compiler.calibration.spill import Spill
from reallm_compiler.errors import CalibrateError, OutputError, ResumeError
from reallm_compiler.runs.journal import Journal
from reallm_compiler.runs.stop import Interrupted
from reallm_formats import writer as writer_module


def kill_at(number: int) -> None:
    """End this process as a power cut would, at the call of this number of what writes files."""
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return wrapped

    os.replace = counted(os.replace)
    Journal.append = counted(Journal.append)  # type: ignore[method-assign]
    Spill.read = counted(Spill.read)  # type: ignore[method-assign]
    Spill.remove = counted(Spill.remove)  # type: ignore[method-assign]
    writer_module._write_all = counted(writer_module._write_all)


def killed(number: int, model: Path, output: Path, settings: dict[str, Any]) -> bool:
    """Whether a child process that calibrates was killed at a call of this number."""
    child = os.fork()
    if not child:
        kill_at(number)
        try:
            reallm.calibrate(model, output=output, **settings)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tiny_llama: Path, settings: dict[str, Any], measured: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.stats"
    struck = 0
    for number in (1, 2, 5, 10, 20, 35, 50, 70):
        struck += killed(number, tiny_llama, output, settings)
        assert not output.exists() or output.read_bytes() == measured.read_bytes()
    assert struck >= 6
    report = reallm.calibrate(tiny_llama, output=output, force=True, **settings)
    assert report.path == str(output)
    assert output.read_bytes() == measured.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.stats"]


@pytest.mark.parametrize("step", [2, 11])
def test_a_stop_keeps_what_is_finished(
    tiny_llama: Path, settings: dict[str, Any], measured: Path, tmp_path: Path, step: int
) -> None:
    output = tmp_path / "out.stats"

    def interrupt(event: Any) -> None:
        if isinstance(event, ChunkDone) and event.steps_done == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="are kept"):
        reallm.calibrate(tiny_llama, output=output, **settings, on_event=interrupt)
    assert not output.exists()
    events: list[Any] = []
    report = reallm.calibrate(tiny_llama, output=output, **settings, on_event=events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert started.tasks_done == report.tasks_resumed >= step // 3 - 1
    assert output.read_bytes() == measured.read_bytes()


@pytest.fixture
def interrupted(tiny_llama: Path, settings: dict[str, Any], tmp_path: Path) -> Callable[[], Path]:
    """An output whose calibration was stopped in the middle."""

    def make() -> Path:
        output = tmp_path / "out.stats"
        with pytest.raises(Interrupted):
            reallm.calibrate(
                tiny_llama,
                output=output,
                **settings,
                on_event=lambda event: (
                    os.kill(os.getpid(), signal.SIGINT)
                    if isinstance(event, ChunkDone) and event.steps_done == 10
                    else None
                ),
            )
        return output

    return make


def test_other_inputs_do_not_go_on(
    tiny_llama: Path,
    settings: dict[str, Any],
    words: Path,
    interrupted: Callable[[], Path],
    tmp_path: Path,
    negate: Callable[[Path, str], None],
) -> None:
    output = interrupted()
    other = tmp_path / "other.txt"
    other.write_text(words.read_text() + " Tom has a lamp.")
    with pytest.raises(ResumeError, match="the text"):
        reallm.calibrate(tiny_llama, output=output, **{**settings, "text": [other]})
    with pytest.raises(ResumeError, match="other inputs"):
        reallm.calibrate(tiny_llama, output=output, **{**settings, "seed": 1})
    tensor = "model.layers.0.mlp.up_proj.weight"
    negate(tiny_llama, tensor)
    try:
        with pytest.raises(ResumeError, match=tensor):
            reallm.calibrate(tiny_llama, output=output, **settings)
    finally:
        negate(tiny_llama, tensor)


def test_hidden_states_that_are_gone_are_made_again(
    tiny_llama: Path, settings: dict[str, Any], measured: Path, interrupted: Callable[[], Path]
) -> None:
    output = interrupted()
    states = list(output.parent.glob("*.state"))
    assert states
    states[0].unlink()
    report = reallm.calibrate(tiny_llama, output=output, **settings)
    assert report.tasks_resumed == 0
    assert output.read_bytes() == measured.read_bytes()


def test_nothing_is_overwritten_unasked(
    tiny_llama: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out.stats"
    output.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        reallm.calibrate(tiny_llama, output=output, **settings)
    with pytest.raises(OutputError, match="replace an input"):
        reallm.calibrate(tiny_llama, output=settings["text"][0], force=True, **settings)
    with pytest.raises(ResumeError, match="no interrupted run"):
        reallm.calibrate(tiny_llama, output=tmp_path / "b", resume="required", **settings)
    assert output.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("change", "words_said"),
    [
        ({"samples": 0}, "`samples` must be"),
        ({"window": 1}, "`window` must be"),
        ({"window": 200}, "longer than the model's 128 positions"),
        ({"seed": -1}, "`seed` must be"),
        ({"diagonal": -1}, "`diagonal` must be"),
        ({"separator": "|"}, "does not occur"),
        ({"text": []}, "no text is given"),
        ({"device": "mars"}, "is not a device"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    tiny_llama: Path,
    settings: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    words_said: str,
) -> None:
    with pytest.raises(CalibrateError, match=words_said):
        reallm.calibrate(tiny_llama, output=tmp_path / "o", **{**settings, **change})
    assert not list(tmp_path.iterdir())
