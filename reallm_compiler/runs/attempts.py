"""Attempts at tasks on machines that may fail: how many at once, and what is tried again.

A task that is lost with its worker or node, or for which memory ran out, is tried again, three
times in all. When nothing else is left to begin, a task that takes far longer than all others is
begun a second time, and the first to finish counts: either writes the same bytes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.tasks import Schedule, Task

TRIES = 3
"""Attempts at a task before the run fails."""

SLOW_SECONDS = 30.0
"""No task is slow before this time."""

SLOW_TIMES = 3.0
"""A task is slow that takes this many times as long as the slowest that is finished."""


@dataclass(eq=False, slots=True)
class Attempt:
    """One attempt at a task; each is itself alone.

    Attributes:
        task: the task.
        number: 1 for the first.
        began: time by the clock.
        memory_times: factor on the memory that is asked for.
    """

    task: Task
    number: int
    began: float
    memory_times: int = 1


@dataclass(frozen=True, slots=True)
class Loss:
    """Why an attempt came to nothing.

    Attributes:
        why: in a few words, with the node.
        memory: memory ran out.
    """

    why: str
    memory: bool = False


class Attempts:
    """What is under way of a schedule.

    Args:
        schedule: what may begin.
        clock: seconds, for tests.

    Attributes:
        running: the attempts under way.
    """

    def __init__(self, schedule: Schedule, clock: Callable[[], float] = time.monotonic) -> None:
        self._schedule = schedule
        self._clock = clock
        self._again: deque[Attempt] = deque()
        self._losses: dict[str, list[Loss]] = {}
        self._slowest: float | None = None
        self.running: list[Attempt] = []

    def begin(self, slots: int) -> Attempt | None:
        """The next attempt to begin; None if there is none, or `slots` are under way."""
        if len(self.running) >= slots:
            return None
        attempt = self._next()
        if attempt is not None:
            attempt.began = self._clock()
            self.running.append(attempt)
        return attempt

    def finish(self, attempt: Attempt) -> list[Attempt]:
        """Record that an attempt has finished its task; other attempts at it, to be ended."""
        self.running.remove(attempt)
        seconds = self._clock() - attempt.began
        self._slowest = max(self._slowest or 0.0, seconds)
        self._schedule.finish(attempt.task.key)
        others = [one for one in self.running if one.task is attempt.task]
        self.running = [one for one in self.running if one.task is not attempt.task]
        self._again = deque(one for one in self._again if one.task is not attempt.task)
        return others

    def lose(self, attempt: Attempt, loss: Loss) -> None:
        """Record that an attempt came to nothing; its task is tried again.

        Raises:
            CompileError: it was the third; names the task.
        """
        self.running.remove(attempt)
        losses = self._losses.setdefault(attempt.task.key, [])
        losses.append(loss)
        if any(one.task is attempt.task for one in self.running):
            return  # the other attempt at it goes on
        if len(losses) >= TRIES:
            raise CompileError(
                f"{attempt.task.title} failed {len(losses)} times on the cluster",
                location=attempt.task.title,
                note="; ".join(dict.fromkeys(one.why for one in losses)),
                hint="give the nodes more memory, then run the same command again to resume"
                if loss.memory
                else "look at the nodes' logs, then run the same command again to resume",
            )
        shortages = sum(one.memory for one in losses)
        again = Attempt(attempt.task, len(losses) + 1, 0.0, memory_times=1 << shortages)
        self._again.append(again)

    def _next(self) -> Attempt | None:
        if self._again:
            return self._again.popleft()
        task = self._schedule.next()
        if task is not None:
            return Attempt(task, 1, 0.0)
        return self._second_of_slowest()

    def _second_of_slowest(self) -> Attempt | None:
        """A second attempt at the task that has been under way longest, if that is far too long."""
        if self._slowest is None:
            return None
        keys = [one.task.key for one in self.running]
        alone = [one for one in self.running if keys.count(one.task.key) == 1]
        if not alone:
            return None
        oldest = min(alone, key=lambda one: one.began)
        if self._clock() - oldest.began < max(SLOW_SECONDS, SLOW_TIMES * self._slowest):
            return None
        return Attempt(oldest.task, oldest.number + 1, 0.0, oldest.memory_times)
