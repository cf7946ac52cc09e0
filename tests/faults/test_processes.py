"""Processes that die alone, and two of them that want one output."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.fault_injection import (
    Bench,
    Result,
    ended,
    finished,
    is_worker,
    refused,
    tasks_done,
    wait_for_tasks,
    wait_for_workers,
    workers_of,
)


def test_a_worker_is_killed(bench: Bench, output: Path) -> None:
    process = bench.start(bench.arguments("slow", output, "--workers", "2"))
    wait_for_tasks(process, output, 2)
    workers = workers_of(process)
    assert len(workers) == 2, workers
    os.kill(workers[0], signal.SIGKILL)
    refused(ended(process), 7, "a worker process died", "same command again")
    assert tasks_done(output) >= 2
    bench.resumes(output)


@pytest.mark.faults
@pytest.mark.parametrize("tasks", [2, 0], ids=["while workers code", "while workers start"])
def test_the_compile_is_killed(bench: Bench, output: Path, tasks: int) -> None:
    """Workers end with their compile, although they ignore signals."""
    process = bench.start(bench.arguments("slow", output, "--workers", "2"))
    wait_for_tasks(process, output, tasks)
    workers = wait_for_workers(process)
    process.kill()
    ended(process)  # when the last one has closed its stderr
    assert not any(Path(f"/proc/{pid}").exists() and is_worker(pid) for pid in workers)
    bench.resumes(output, "--workers", "2")


@pytest.mark.faults
def test_two_compiles_of_one_output(bench: Bench, output: Path) -> None:
    first = bench.start(bench.arguments("slow", output))
    wait_for_tasks(first, output, 1)
    first.send_signal(signal.SIGSTOP)  # it holds still until the second has been refused
    for resume in ("auto", "never"):
        second = bench.run(bench.arguments("slow", output, "--resume", resume, "--force"))
        refused(second, 6, "another run is writing this output", "wait for it")
    first.send_signal(signal.SIGCONT)
    finished(ended(first))
    assert output.read_bytes() == bench.undisturbed("slow")


def test_a_bad_refusal_is_seen() -> None:
    """Another code, an output, a traceback, silence."""
    good = Result(7, "", "error: no\n")
    refused(good, 7, "error: no")
    for code, out, err in ((0, "", "error: no"), (7, "x", "error: no"), (7, "", "Traceback")):
        with pytest.raises(AssertionError):
            refused(Result(code, out, err), 7)
    with pytest.raises(AssertionError):
        refused(good, 7, "free disk space")
