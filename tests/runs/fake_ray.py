"""Ray's calls as the backend makes them, done in this process, with faults at will."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from reallm_compiler.runs import ray_worker


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _kind(name: str) -> type[RayError]:
    return type(name, (RayError,), {})


class FakeRay:
    """The library.

    Attributes:
        faults: by a task's key, for each attempt in order: how many answers come, then what error.
        submitted: key and options of each task in order.
        cancelled: how many tasks were.
        most: tasks under way at once, at most.
    """

    exceptions = SimpleNamespace(
        RayError=RayError,
        RayTaskError=RayTaskError,
        GetTimeoutError=_kind("GetTimeoutError"),
        OutOfMemoryError=_kind("OutOfMemoryError"),
        NodeDiedError=_kind("NodeDiedError"),
        TaskUnschedulableError=_kind("TaskUnschedulableError"),
        WorkerCrashedError=_kind("WorkerCrashedError"),
    )
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(
            NodeAffinitySchedulingStrategy=lambda node, soft: None
        )
    )

    def __init__(self, faults: dict[str, list[tuple[int, BaseException]]] | None = None) -> None:
        self.faults = faults or {}
        self.submitted: list[tuple[str, dict[str, Any]]] = []
        self.cancelled = 0
        self.most = 0

    def remote(self, **options: Any) -> Any:
        return lambda made: _Remote(self, made, options)

    def put(self, value: Any) -> Any:
        return value

    def get(self, value: Any, timeout: float = 0.0) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    def wait(self, waiting: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(waiting))
        return waiting[-1:], waiting[:-1]  # the last one first, to be as unkind as possible

    def cancel(self, answers: Any, force: bool) -> None:
        assert force
        self.cancelled += 1

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")


class _Remote:
    def __init__(self, ray: FakeRay, made: Any, options: dict[str, Any]) -> None:
        self._ray, self._made, self._options = ray, made, options

    def options(self, **options: Any) -> _Remote:
        return _Remote(self._ray, self._made, {**self._options, **options})

    def remote(self, *args: Any) -> Any:
        if isinstance(self._made, type):
            actor = self._made(*args)
            return SimpleNamespace(read=SimpleNamespace(remote=actor.read))
        _, task = args
        self._ray.submitted.append((task.key, self._options))
        faults = self._ray.faults.get(task.key)
        return _Answers(self._made(*args), faults.pop(0) if faults else None)


class _Answers:
    def __init__(self, answers: Iterator[Any], fault: tuple[int, BaseException] | None) -> None:
        self._answers, self._fault, self._count = answers, fault, 0

    def __next__(self) -> Any:
        if self._fault is not None and self._count == self._fault[0]:
            ray_worker._current = None  # the worker process is no more
            return self._fault[1]
        self._count += 1
        return next(self._answers)
