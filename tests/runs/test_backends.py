"""Backends: the same results in this process and in workers, and nobody waits without need."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reallm_compiler.runs.backends import backend_for, results
from reallm_compiler.runs.stop import Interrupted, StopRequest
from reallm_compiler.runs.tasks import Task, TaskGraph, TaskResult

sys.path.insert(0, str(Path(__file__).parent))  # workers get it too
from jobs import BAD, SLOW, HashJob

WORKERS = pytest.mark.parametrize("workers", [1, 2])


def graph(*pairs: tuple[str, tuple[str, ...]]) -> TaskGraph:
    return TaskGraph(Task(key=key, title=key, needs=needs) for key, needs in pairs)


CHAIN = graph(("a", ()), ("b", ("a",)), ("c", ("a", "b")), ("d", ()), ("e", ("d",)))


def run(
    tasks: TaskGraph, workers: int, *, job: Any = None, done: Any = (), stop: Any = None
) -> tuple[list[TaskResult], list[Any]]:
    events: list[Any] = []
    found = results(
        backend_for(workers), job or HashJob(), tasks, done, stop or StopRequest(), events.append
    )
    with closing(found):
        return list(found), events


def test_the_same_results_for_one_worker_and_two() -> None:
    (one, events), (two, others) = run(CHAIN, 1), run(CHAIN, 2)
    assert {result.task: result for result in one} == {result.task: result for result in two}
    assert [result.task for result in one] == ["a", "b", "c", "d", "e"]
    assert sorted(events) == sorted(others) == [f"began {task.key}" for task in CHAIN.tasks]
    order = [result.task for result in two]
    assert order.index("a") < order.index("b") < order.index("c")
    assert order.index("d") < order.index("e")


@WORKERS
def test_what_is_done_is_not_done_again(workers: int) -> None:
    found, _ = run(CHAIN, workers, done={"a", "d"})
    assert {result.task for result in found} == {"b", "c", "e"}


def test_a_share_group_does_not_make_other_matrices_wait() -> None:
    tasks = graph((SLOW, ()), ("member", (SLOW,)), ("x", ()), ("y", ()), ("z", ()))
    found, _ = run(tasks, 2, job=HashJob(seconds=2.0))
    order = [result.task for result in found]
    assert order[-2:] == [SLOW, "member"]
    assert set(order[:3]) == {"x", "y", "z"}


@WORKERS
def test_a_failure_ends_the_run(workers: int) -> None:
    tasks = graph((BAD, ()), ("after", (BAD,)))
    with pytest.raises(ValueError, match="bad task"):
        run(tasks, workers)


@WORKERS
def test_a_stop_before_the_first_task(workers: int) -> None:
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Interrupted):
        run(CHAIN, workers, stop=stop)
    assert run(CHAIN, workers, stop=stop, done={task.key for task in CHAIN.tasks}) == ([], [])
