"""`progress=`: one convention for every function that takes long."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler.evaluate.models import evaluate_files
from reallm_compiler.evaluate.survey import survey_model
from reallm_compiler.finetune import Event, TensorsRead, finetune
from reallm_compiler.progress import LINE_SECONDS, Lines, pace_text, progress_callback
from reallm_compiler.reader.verify import verify


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(stream: io.StringIO, steps: list[tuple[float, int]], total: int = 10) -> str:
    clock = Clock()
    lines = Lines("compile", "steps", stream=stream, clock=clock)
    for clock.now, done in steps:
        lines(done, total)
    return stream.getvalue()


def test_a_line_now_and_then_without_a_terminal() -> None:
    steps = [(0, 2), (1, 3), (LINE_SECONDS, 4), (LINE_SECONDS + 1, 5), (3 * LINE_SECONDS, 6)]
    assert printed(io.StringIO(), steps).splitlines() == [
        "compile: 4 of 10 steps, 15 s each, 1 min 30 s left",
        "compile: 6 of 10 steps, 22 s each, 1 min 30 s left",
    ]
    assert (
        printed(io.StringIO(), [(0, 0), (5, 10), (6, 10)]) == "compile: 10 of 10 steps in 5.0 s\n"
    )


def test_one_line_that_is_written_again_on_a_terminal() -> None:
    text = printed(Screen(), [(0, 0), (10, 4), (10.1, 5), (20, 10)])
    assert text == (
        "compile: 4 of 10 steps, 2.5 s each, 15 s left\r"
        "compile: 10 of 10 steps in 20 s              \n"
    )


class Notebook(io.StringIO):
    """As the stream of a notebook's kernel: no terminal, and a line can be rewritten."""

    __module__ = "ipykernel.iostream"


def test_a_notebook_has_one_line_that_is_written_again() -> None:
    assert not Notebook().isatty()
    text = printed(Notebook(), [(0, 0), (10, 4), (10.1, 5), (20, 10)])
    assert text.count("\r") == 1
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("stream", "seconds", "shown"),
    [(Screen, 3.0, True), (Notebook, 3.0, True), (Screen, 1.0, False), (io.StringIO, 60.0, False)],
)
def test_unasked_it_shows_to_those_who_watch_what_takes_long(
    stream: type[io.StringIO], seconds: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, output = Clock(), stream()
    monkeypatch.setattr("sys.stderr", output)
    defaults = {**Lines.__init__.__kwdefaults__, "clock": clock}
    monkeypatch.setattr(Lines.__init__, "__kwdefaults__", defaults)
    report = progress_callback(None, "load", "tensors")
    report(0, 2)
    clock.now = seconds
    report(1, 2)
    report(2, 2)
    assert bool(output.getvalue()) is shown


@pytest.mark.parametrize(
    ("unit", "left", "fresh", "seconds", "expected"),
    [
        ("windows", 6, 4, 0.5, ""),
        ("windows", 6, 0, 5, ""),
        ("windows", 6, 4, 2, ", 2.0 windows/s, 3.0 s left"),
        ("windows", 6, 4, 40, ", 10 s each, 1 min 00 s left"),
        ("bytes", 10**9, 10**9, 100, ", 10.0 MB/s, 1 min 40 s left"),
        ("tokens", 0, 250_000, 2, ", 125,000 tokens/s"),
    ],
)
def test_speed_and_time_left(
    unit: str, left: float, fresh: float, seconds: float, expected: str
) -> None:
    assert pace_text(unit, left, fresh, seconds) == expected


def test_what_the_caller_gives(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int]] = []

    def record(done: int, total: int) -> None:
        calls.append((done, total))

    progress_callback(record, "x", "y")(1, 2)
    progress_callback(False, "x", "y")(2, 2)
    assert calls == [(1, 2)]
    assert capsys.readouterr() == ("", "")
    progress_callback(True, "x", "y")(2, 2)
    assert capsys.readouterr() == ("", "x: 2 of 2 y in 0.0 s\n")


class Calls(list[tuple[int, int]]):
    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))

    def check(self) -> None:
        assert self[-1][0] == self[-1][1] > 0
        assert self == sorted(self)
        self.clear()


def test_every_function_that_takes_long(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, path, text = Calls(), tmp_path / "o.reallm", tmp_path / "text.txt"
    text.write_text("Anna has a red apple and gives it to Tom. " * 40)
    given: Any = {"model": tiny_llama, "output": path, "device": "cpu"}
    reallm.compile(tiny_recipe, **given, progress=calls)
    calls.check()
    assert verify(path, progress=calls) == []
    calls.check()
    reallm.reconstruct(path, tmp_path / "model", progress=calls)
    calls.check()
    survey_model(tiny_llama, only="*.layers.0.*q_proj", progress=calls)
    calls.check()
    loads = Calls()
    evaluate_files(tmp_path / "model", text, window=16, progress=calls, load_progress=loads)
    calls.check()
    loads.check()
    for model in (path, tmp_path / "model"):
        reallm.load(model, progress=calls)
        tensors = calls[-1][1]
        assert calls == [(done, tensors) for done in range(tensors + 1)]
        calls.check()
    reallm.open_tunable(path, progress=calls)
    calls.check()
    options = {
        "window": 16,
        "held_out": 2,
        "block": {"batch": 4, "epochs": 2},
        "e2e": {"batch": 2, "steps": 2, "loss": "distill"},
    }
    events: list[Event] = []
    finetune(
        path,
        model=tiny_llama,
        text=text,
        output=tmp_path / "a.adapter",
        options=options,
        progress=calls,
        on_event=events.append,
    )
    calls.check()
    read = [event for event in events if isinstance(event, TensorsRead)]
    assert {event.model for event in read} == {"archive", "original"}
    assert all(event.done == event.total for event in (read[-1], read[len(read) // 2 - 1]))
    assert "steps" not in capsys.readouterr().err
    reallm.compile(tiny_recipe, **given, force=True)
    assert capsys.readouterr().err.startswith("compile: 15 of 15 steps in ")
    reallm.compile(tiny_recipe, **given, force=True, on_event=lambda event: None)
    assert capsys.readouterr().err == ""
    reallm.load(path, progress=True)
    assert re.fullmatch(r"load: (\d+) of \1 tensors in [\d.]+ s\n", capsys.readouterr().err)
