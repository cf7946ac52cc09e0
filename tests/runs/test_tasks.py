"""The graph of tasks: any order of completion respects the needs, and a wrong graph is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reallm_compiler.runs.tasks import Task, TaskGraph, TaskResult


def task(key: str, *needs: str) -> Task:
    return Task(key=key, title=key, needs=needs)


@st.composite
def graphs(draw: Any) -> TaskGraph:
    """A graph without circles, its tasks listed in any order."""
    count = draw(st.integers(0, 12))
    tasks = []
    for number in range(count):
        needs = draw(st.sets(st.integers(0, number - 1))) if number else set()
        tasks.append(task(str(number), *map(str, needs)))
    return TaskGraph(draw(st.permutations(tasks)))


@given(graphs(), st.data())
def test_any_order_of_completion_respects_needs(graph: TaskGraph, data: st.DataObject) -> None:
    keys = [one.key for one in graph.tasks]
    done = set(data.draw(st.sets(st.sampled_from(keys)))) if keys else set()
    finished, running = set(done), []
    schedule = graph.schedule(done)
    while schedule.remaining:
        while (one := schedule.next()) is not None:
            assert set(one.needs) <= finished
            running.append(one.key)
        # All that may run was given out: what is left waits for something that runs.
        for left in schedule.remaining - set(running):
            assert not set(graph.by_key[left].needs) <= finished
        key = running.pop(data.draw(st.integers(0, len(running) - 1)))
        schedule.finish(key)
        assert key not in finished
        finished.add(key)
    assert finished == set(keys)
    assert schedule.next() is None


@given(graphs())
def test_one_at_a_time_the_order_is_that_of_the_list(graph: TaskGraph) -> None:
    schedule = graph.schedule()
    finished: list[str] = []
    while (one := schedule.next()) is not None:
        first = next(
            other.key
            for other in graph.tasks
            if other.key not in finished and set(other.needs) <= set(finished)
        )
        assert one.key == first
        schedule.finish(one.key)
        finished.append(one.key)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task("a"), task("b"), task("a")], "two tasks are called a"),
        ([task("a", "b")], "a needs b, which is not a task"),
        ([task("a", "a")], "tasks depend on each other: a -> a"),
        ([task("a", "c"), task("b", "a"), task("c", "b")], "tasks depend on each other: .* -> "),
    ],
)
def test_a_wrong_graph_is_refused(tasks: list[Task], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskGraph(tasks)


def test_a_result_comes_back_from_its_record() -> None:
    result = TaskResult(task="a", sections={"s": "00"}, errors={"m": 0.5}, source={"t": "ff"})
    assert TaskResult.from_record(result.to_record()) == result
