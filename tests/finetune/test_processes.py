"""Several processes on the CPU, connected by gloo: one result, one message, one state."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reallm_compiler.errors import FinetuneError, ReallmError
from reallm_compiler.finetune import end_to_end, finetune
from reallm_compiler.finetune.processes import ElsewhereError, is_main, world_size
from reallm_compiler.runs.stop import Interrupted

SHARED = {
    "block": {"lr": 1e-2, "batch": 2, "accumulation": 3, "epochs": 2, "patience": 2},
    "e2e": {"lr": 1e-2, "batch": 1, "accumulation": 3, "steps": 4, "checks": 2},
}
"""Three batches to a step: two processes share them unequally."""

# From Python 3.12 on: a fork of a process with threads. Each child runs one thread of torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

Call = Callable[..., Any]


@pytest.fixture
def call(base: Path, tiny_llama: Path, prose: Path, options: dict) -> Call:
    def run(output: Path, **more: Any) -> Any:
        text = more.pop("text", prose)
        changes = {**options, **SHARED, **more.pop("changes", {})}
        return finetune(base, model=tiny_llama, text=text, output=output, options=changes, **more)

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two(work: Callable[[int], Any]) -> list[Any]:
    """What the work gives, or raises, in each of two processes that are connected.

    None for a process that ended before.
    """
    context = multiprocessing.get_context("fork")
    port, results = free_port(), context.Queue()

    def child(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        try:
            results.put((rank, work(rank)))
        except ReallmError as error:
            results.put((rank, (type(error), str(error))))

    children = [context.Process(target=child, args=(rank,)) for rank in range(2)]
    for one in children:
        one.start()
    for one in children:
        one.join(60)
        one.kill()
    found = {}
    while not results.empty():
        rank, value = results.get(timeout=1)
        found[rank] = value
    return [found.get(0), found.get(1)]


def test_two_processes_make_the_bytes_of_one(call: Call, tmp_path: Path) -> None:
    one, two = tmp_path / "one.adapter", tmp_path / "two.adapter"
    call(one)
    reports = in_two(lambda rank: call(two))
    assert two.read_bytes() == one.read_bytes()
    assert reports[0].after == reports[1].after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.adapter", "two.adapter"]


@pytest.mark.parametrize("loss", ["next_token", "distill"])
def test_shared_weights_make_the_bytes_of_one(call: Call, tmp_path: Path, loss: str) -> None:
    """Three held-out batches, of which one process has two: both run the model as often."""
    one, two = tmp_path / "one.adapter", tmp_path / "two.adapter"
    end = {**SHARED["e2e"], "accumulation": 2, "loss": loss}
    changes = {"stages": ["e2e"], "e2e": end, "checkpointing": loss == "distill"}
    call(one, changes=changes)

    def shared(rank: int) -> Any:
        call(two, changes=changes, shard=True)

    in_two(shared)
    assert two.read_bytes() == one.read_bytes()


def test_a_stopped_run_goes_on_in_another_number_of_processes(call: Call, tmp_path: Path) -> None:
    one, two = tmp_path / "one.adapter", tmp_path / "two.adapter"
    call(one)
    step = end_to_end.EndToEnd._step

    def stop_in_second(self: Any, number: int, blocks: Any) -> float:
        if number == 2 and not is_main():
            signal.raise_signal(signal.SIGTERM)
        return step(self, number, blocks)

    def stopped(rank: int) -> Any:
        end_to_end.EndToEnd._step = stop_in_second  # type: ignore[method-assign]
        return call(two)

    errors = in_two(stopped)
    assert {kind for kind, _ in errors} == {Interrupted, ElsewhereError}
    assert not two.exists()
    assert two.with_name("two.adapter.tuning").exists()
    seen: list[Any] = []
    call(two, resume="required", on_event=seen.append)
    assert any(getattr(event, "resumed", None) == "end to end, step 3" for event in seen)
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": "missing.txt"}, "missing.txt"),
        ({"changes": {"seed": 7}}, "differs from process 0 in the settings"),
    ],
    ids=["one cannot read", "one differs"],
)
def test_an_error_in_one_ends_all_with_one_message(
    call: Call, tmp_path: Path, wrong: dict, message: str
) -> None:
    errors = in_two(lambda rank: call(tmp_path / "out.adapter", **(wrong if rank else {})))
    assert errors[0][0] is ElsewhereError
    assert message in errors[1][1]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_ends_the_other(call: Call, tmp_path: Path) -> None:
    step = end_to_end.EndToEnd._step

    def die_in_second(self: Any, number: int, blocks: Any) -> float:
        if number == 2 and not is_main():
            os._exit(9)
        return step(self, number, blocks)

    def killed(rank: int) -> Any:
        end_to_end.EndToEnd._step = die_in_second  # type: ignore[method-assign]
        return call(tmp_path / "out.adapter", changes={"stages": ["e2e"]})

    one, other = in_two(killed)
    assert other is None
    assert one[0] is FinetuneError
    assert "the connection to another process of this run is lost" in one[1]


def test_too_few_batches(call: Call, tmp_path: Path) -> None:
    few = {"stages": ["e2e"], "e2e": {**SHARED["e2e"], "accumulation": 1}}
    errors = in_two(lambda rank: call(tmp_path / "out.adapter", changes=few))
    assert {kind for kind, _ in errors} == {FinetuneError, ElsewhereError}
    assert any("2 processes, and 1 batches to a step" in text for _, text in errors)


@pytest.mark.slow
def test_by_torchrun(base: Path, tiny_llama: Path, prose: Path, tmp_path: Path) -> None:
    """The documented command: the bytes of one process, told by the first process alone."""
    one, two = tmp_path / "one.adapter", tmp_path / "two.adapter"
    settings = {"batch": 1, "accumulation": 3, "steps": 2}
    common: dict[str, Any] = {"window": 16, "stages": ["e2e"], "e2e": settings}
    finetune(base, model=tiny_llama, text=prose, output=one, options=common)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-port", str(free_port()), "-m", "reallm_cli", "finetune", str(base)]
    launch += ["--model", str(tiny_llama), "--text", str(prose), "-o", str(two), "--stage", "e2e"]
    launch += ["--window", "16", "--device", "cpu"]
    for key, value in settings.items():
        launch += ["--set", f"e2e.{key}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out loss end to end") == 1
    assert done.stderr.count("wrote `") == 1
    assert two.read_bytes() == one.read_bytes()


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # as a job's scheduler may set it
    assert world_size() == 1
    assert is_main()
