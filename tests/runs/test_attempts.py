"""What is tried again on a cluster, how often, and when a slow task is begun twice."""

from __future__ import annotations

import pytest

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.attempts import SLOW_SECONDS, SLOW_TIMES, TRIES, Attempts, Loss
from reallm_compiler.runs.tasks import Task, TaskGraph

NODE_GONE = Loss("east: the node is gone")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(*keys: str, needs: dict[str, tuple[str, ...]] | None = None) -> tuple[Attempts, Clock]:
    tasks = [Task(key=key, title=f"matrix {key}", needs=(needs or {}).get(key, ())) for key in keys]
    clock = Clock()
    return Attempts(TaskGraph(tasks).schedule(), clock), clock


def begun(found: Attempts, slots: int) -> list[str]:
    made = []
    while (attempt := found.begin(slots)) is not None:
        made.append(f"{attempt.task.key}{attempt.number}")
    return made


def test_no_more_than_the_slots_are_under_way() -> None:
    found, _ = attempts("a", "b", "c")
    assert begun(found, 2) == ["a1", "b1"]
    assert begun(found, 2) == []
    assert found.finish(found.running[0]) == []
    assert begun(found, 2) == ["c1"]


def test_a_task_waits_for_what_it_needs() -> None:
    found, _ = attempts("a", "b", needs={"b": ("a",)})
    assert begun(found, 2) == ["a1"]
    found.finish(found.running[0])
    assert begun(found, 2) == ["b1"]


def test_what_is_lost_is_tried_again_and_the_third_time_named() -> None:
    found, _ = attempts("a")
    for number in range(1, TRIES):
        assert begun(found, 1) == [f"a{number}"]
        found.lose(found.running[0], NODE_GONE)
    assert begun(found, 1) == [f"a{TRIES}"]
    with pytest.raises(CompileError, match="matrix a failed 3 times") as caught:
        found.lose(found.running[0], Loss("west: the worker process was killed"))
    assert caught.value.note == "east: the node is gone; west: the worker process was killed"
    assert "resume" in (caught.value.hint or "")


def test_memory_that_ran_out_is_asked_for_twice() -> None:
    found, _ = attempts("a")
    begun(found, 1)
    found.lose(found.running[0], Loss("east: memory ran out", memory=True))
    begun(found, 1)
    assert found.running[0].memory_times == 2
    found.lose(found.running[0], NODE_GONE)
    begun(found, 1)
    assert found.running[0].memory_times == 2


def slow(seconds: float) -> tuple[Attempts, Clock]:
    """`a` is finished after a second; `b` is under way for so many."""
    found, clock = attempts("a", "b")
    begun(found, 2)
    clock.now += 1.0
    found.finish(found.running[0])
    clock.now += seconds - 1.0
    return found, clock


def test_a_slow_task_is_begun_a_second_time_and_one_of_the_two_counts() -> None:
    found, clock = slow(max(SLOW_SECONDS, SLOW_TIMES * 1.0))
    assert begun(found, 2) == ["b2"]
    assert begun(found, 3) == []  # not a third time
    first, second = found.running
    clock.now += 1.0
    assert found.finish(second) == [first]
    assert found.running == []
    assert begun(found, 2) == []


def test_no_task_is_slow_too_early_nor_without_a_slot() -> None:
    assert begun(slow(SLOW_SECONDS - 1.0)[0], 2) == []
    assert begun(slow(1000.0)[0], 1) == []


def test_a_lost_task_with_another_attempt_under_way_is_not_begun_again() -> None:
    found, _ = slow(1000.0)
    assert begun(found, 2) == ["b2"]
    first, second = found.running
    found.lose(first, NODE_GONE)
    assert begun(found, 1) == []
    assert found.finish(second) == []
