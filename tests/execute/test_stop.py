"""Asked to stop: at every step of a compile the run ends in order and says how to go on."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reallm_compiler as reallm
from reallm_compiler import publish as publish_module
from reallm_compiler.errors import CompileError
from reallm_compiler.execute import archive as archive_module
from reallm_compiler.execute import coder as coder_module
from reallm_compiler.execute import run as run_module
from reallm_compiler.execute.events import TaskDone
from reallm_compiler.runs import pool as pool_module
from reallm_compiler.runs import resume as resume_module
from reallm_compiler.runs import worker as worker_module
from reallm_compiler.runs.stop import Interrupted, block_signals, catch_signals
from reallm_compiler.runs.tasks import Task, TaskResult
from reallm_formats import Writer
from tests.execute.conftest import compiled

NUMBERS = [signal.SIGINT, signal.SIGTERM]


def signal_in(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, *numbers: int) -> None:
    """The process is signalled when it calls a function."""
    original = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for number in numbers:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapped)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (run_module, "build"),
        (archive_module, "identity_of"),
        (archive_module, "workers_on"),
        (archive_module, "check_disk"),
    ],
)
def test_before_the_reservation_nothing_is_left(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    number: int,
) -> None:
    before = handlers()
    signal_in(monkeypatch, module, name, number)
    with pytest.raises(Interrupted, match="nothing was written") as caught:
        compiled(tiny_recipe, tiny_llama, tmp_path / "o.reallm")
    assert caught.value.hint == "run the same command again"
    assert not list(tmp_path.iterdir())
    assert handlers() == before


@pytest.mark.parametrize("number", NUMBERS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("module", "name", "steps"),
    [
        (Writer, "create", 0),
        (archive_module, "start", 0),
        (archive_module, "results", 0),
        (coder_module, "encode_matrix", 3),
    ],
    ids=["reserving", "reserved", "before the first matrix", "in a matrix"],
)
def test_from_the_reservation_on_it_can_go_on(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    reference: bytes,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    steps: int,
    number: int,
) -> None:
    path = tmp_path / "o.reallm"
    with monkeypatch.context() as patch:
        signal_in(patch, module, name, number)
        with pytest.raises(Interrupted, match="finished matrices are kept") as caught:
            compiled(tiny_recipe, tiny_llama, path)
    assert caught.value.hint == "run the same command again to resume where it stopped"
    report = reallm.compile(
        tiny_recipe, model=tiny_llama, output=path, resume="required", device="cpu"
    )
    assert report.tasks_resumed <= steps
    assert path.read_bytes() == reference


def stopped(recipe: Any, model: Path, path: Path, steps: int, **options: Any) -> Interrupted:
    """Ask a compile to stop after so many steps."""

    def interrupt(event: Any) -> None:
        if isinstance(event, TaskDone) and event.tasks_done == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        compiled(recipe, model, path, on_event=interrupt, **options)
    return caught.value


def test_while_slots_are_read_again(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    reference: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "o.reallm"
    stopped(tiny_recipe, tiny_llama, path, 4)
    with monkeypatch.context() as patch:
        signal_in(patch, resume_module, "intact_tasks", signal.SIGTERM)
        with pytest.raises(Interrupted, match="finished matrices are kept"):
            compiled(tiny_recipe, tiny_llama, path)
    report = reallm.compile(tiny_recipe, model=tiny_llama, output=path, resume="required")
    assert report.tasks_resumed == 4
    assert path.read_bytes() == reference


@pytest.mark.parametrize(
    ("module", "name"),
    [(archive_module, "_finish"), (os, "replace"), (publish_module, "sync_path")],
    ids=["finishing", "renaming", "renamed"],
)
def test_with_all_matrices_done_it_ends_well(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    reference: bytes,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
) -> None:
    signal_in(monkeypatch, module, name, signal.SIGTERM)
    assert compiled(tiny_recipe, tiny_llama, tmp_path / "o.reallm") == reference
    assert [entry.name for entry in tmp_path.iterdir()] == ["o.reallm"]


def test_a_run_that_starts_over_goes_on_only_without_that(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    error = stopped(tiny_recipe, tiny_llama, tmp_path / "o.reallm", 2, resume="never")
    assert "again without `--resume never` to resume" in str(error.hint)


def test_a_trial_keeps_nothing_and_stops_at_once(
    tiny_llama: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_in(monkeypatch, coder_module, "encode_matrix", signal.SIGINT)
    with pytest.raises(Interrupted, match="nothing was written"):
        reallm.compile(tiny_recipe, model=tiny_llama, only="*", device="cpu", workers=1)


def test_a_second_signal_does_not_wait(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "o.reallm"
    signal_in(monkeypatch, coder_module, "encode_matrix", signal.SIGINT, signal.SIGINT)
    done: list[Any] = []
    with pytest.raises(Interrupted, match="finished matrices are kept"):
        compiled(tiny_recipe, tiny_llama, path, on_event=done.append)
    assert [event.name for event in done if isinstance(event, TaskDone)] == [
        "kept tensors and files"
    ]


class Deadly(pool_module.Worker):
    """A worker that is killed when it has got its first task, as memory that runs out would."""

    asked: Callable[[], None] = staticmethod(lambda: None)

    def assign(self, task: Any) -> None:
        super().assign(task)
        type(self).asked()
        self.kill()


@pytest.mark.parametrize("asked", [False, True], ids=["not asked", "asked to stop"])
def test_workers_that_die_after_a_stop_was_asked_for_are_no_failure(
    tiny_llama: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool,
) -> None:
    sent = threading.Event()

    def ask() -> None:
        if asked and not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Deadly, "asked", staticmethod(ask))
    monkeypatch.setattr(pool_module, "Worker", Deadly)
    message = "finished matrices are kept" if asked else "a worker process died"
    with pytest.raises(CompileError, match=message) as caught:
        compiled(tiny_recipe, tiny_llama, tmp_path / "o.reallm", workers=2)
    assert isinstance(caught.value, Interrupted) == asked


class OneTask:
    """A runner that fails at tasks called `bad`."""

    def run(self, task: Task) -> TaskResult:
        if task.key == "bad":
            raise ValueError("bad")
        return TaskResult(task=task.key)


def message(key: str) -> bytes:
    return pickle.dumps(Task(key=key, title=key))


def test_a_worker_begins_no_task_once_it_must_halt() -> None:
    halt = threading.Event()
    assert worker_module.answer(OneTask(), message("good"), halt) == TaskResult(task="good")
    halt.set()
    assert worker_module.answer(OneTask(), message("good"), halt) is None


def test_what_a_task_raises_comes_with_its_traceback() -> None:
    found = worker_module.answer(OneTask(), message("bad"), threading.Event())
    back = pickle.loads(pickle.dumps(found)).error
    assert type(back) is ValueError
    assert "in a worker process" in back.__notes__[0]
    assert "raise ValueError" in back.__notes__[0]


class UnpicklableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_an_error_that_cannot_travel_comes_as_words() -> None:
    error = worker_module.failure_of(UnpicklableError("this ", "one")).error
    assert type(error) is RuntimeError
    assert "this one" in str(error)


def test_signals_that_are_held_come_later() -> None:
    with catch_signals() as stop:
        with block_signals():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert not stop.requested
        assert stop.requested


def test_a_second_signal_is_urgent() -> None:
    with catch_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.requested, stop.urgent) == (True, False)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.urgent


def test_patience_is_put_back() -> None:
    with catch_signals() as stop, stop.at_once():
        with stop.in_order():
            os.kill(os.getpid(), signal.SIGINT)
            stop.requested = False
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_catch_nothing() -> None:
    before = handlers()
    seen: list[Any] = []

    def look() -> None:
        with catch_signals():
            seen.extend(handlers())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == before


def test_a_signal_while_workers_end_kills_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Busy:
        busy = True
        line = None

        def halt(self) -> None:
            calls.append("halt")

        def kill(self) -> None:
            calls.append("kill")

        def end(self) -> None:
            calls.append("end")

    def wait(lines: Any, seconds: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool_module, "wait", wait)
    with catch_signals() as stop:
        pool = object.__new__(pool_module.Pool)
        pool._stop = stop
        pool._started = [Busy()]
        with pytest.raises(KeyboardInterrupt):
            pool.close()
    assert calls == ["halt", "kill", "end"]
