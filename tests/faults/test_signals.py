"""SIGINT and SIGTERM at every step of a compile, to the process and to its group."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.fault_injection import (
    Bench,
    ended,
    finished,
    interrupted,
    signal_at,
    tasks_done,
    wait_for_tasks,
    wait_for_workers,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
faults = pytest.mark.faults


@pytest.mark.parametrize("group", [False, pytest.param(True, marks=faults)], ids=["one", "group"])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=faults)])
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=faults), signal.SIGTERM], ids=lambda one: one.name
)
def test_while_matrices_are_coded(
    bench: Bench, output: Path, number: signal.Signals, workers: int, group: bool
) -> None:
    """The run ends within a matrix, and says how to go on.

    A terminal's Ctrl-C and batch systems send it to the group: to the workers too.
    """
    process = bench.start(bench.arguments("slow", output, "--workers", str(workers)))
    done = wait_for_tasks(process, output, 3)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    interrupted(ended(process))
    # One for each worker under way, and one for each that ended between our look and the signal.
    assert tasks_done(output) <= done + 2 * workers, (done, tasks_done(output))
    assert not output.exists()
    bench.resumes(output)


@faults
@pytest.mark.parametrize("later", [0.0, 1.0])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda one: one.name)
def test_while_workers_start(
    bench: Bench, output: Path, number: signal.Signals, later: float
) -> None:
    """The signal meets workers that are not ready, from their first moment on."""
    process = bench.start(bench.arguments("slow", output, "--workers", "2"))
    wait_for_workers(process)
    time.sleep(later)
    os.killpg(process.pid, number)
    interrupted(ended(process))
    bench.resumes(output)


@faults
@pytest.mark.parametrize(
    ("at", "number", "kept"),
    [
        pytest.param("execute.run.build", signal.SIGINT, False, id="SIGINT while planning"),
        pytest.param("execute.run.build", signal.SIGTERM, False, id="SIGTERM while planning"),
        pytest.param("execute.archive.check_disk", signal.SIGTERM, False, id="before reservation"),
        pytest.param("execute.archive.start", signal.SIGTERM, True, id="after reservation"),
    ],
)
def test_before_the_first_matrix(
    bench: Bench, output: Path, at: str, number: signal.Signals, kept: bool
) -> None:
    """How to go on is said, and what is kept is what is left."""
    process = bench.start(bench.arguments("slow", output), first=signal_at(at, number))
    interrupted(ended(process), "finished matrices are kept" if kept else "nothing was written")
    if kept:
        bench.resumes(output)
    else:
        assert not list(output.parent.iterdir())


@faults
def test_while_finished_sections_are_read_again(bench: Bench, output: Path) -> None:
    process = bench.start(bench.arguments("slow", output))
    wait_for_tasks(process, output, 2)
    process.kill()
    ended(process)
    first = signal_at("runs.resume.intact_tasks", signal.SIGTERM)
    interrupted(ended(bench.start(bench.arguments("slow", output), first=first)))
    bench.resumes(output)


@faults
@pytest.mark.parametrize("at", ["execute.archive._finish", "publish.sync_path"])
def test_after_the_last_matrix(bench: Bench, output: Path, at: str) -> None:
    """The run ends well."""
    first = signal_at(at, signal.SIGTERM)
    finished(ended(bench.start(bench.arguments("slow", output), first=first)))
    assert output.read_bytes() == bench.undisturbed("slow")
    assert [entry.name for entry in output.parent.iterdir()] == [output.name]
