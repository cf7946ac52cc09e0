"""A small job for tests of backends; worker processes import it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reallm_compiler.runs.job import Context
from reallm_compiler.runs.tasks import Task, TaskResult

SLOW = "slow"
BAD = "bad"


@dataclass(frozen=True)
class HashJob:
    """Digests the keys of tasks; one that is called `slow` takes a while, one `bad` fails."""

    seconds: float = 0.0

    @contextmanager
    def open(self, context: Context) -> Iterator[HashRunner]:
        yield HashRunner(self, context)


@dataclass(frozen=True)
class HashRunner:
    job: HashJob
    context: Context

    def run(self, task: Task) -> TaskResult:
        self.context.emit(f"began {task.key}")
        if task.key == BAD:
            raise ValueError("bad task")
        if task.key == SLOW:
            time.sleep(self.job.seconds)
        digest = hashlib.sha256(task.key.encode()).hexdigest()
        return TaskResult(task=task.key, sections={task.key: digest})


@dataclass(frozen=True)
class WriteJob:
    """Writes the name of each section into it, behind those that the task needs."""

    @contextmanager
    def open(self, context: Context) -> Iterator[WriteRunner]:
        yield WriteRunner(context)


@dataclass(frozen=True)
class WriteRunner:
    context: Context

    def run(self, task: Task) -> TaskResult:
        sink = self.context.sink
        assert sink is not None
        result = TaskResult(task=task.key)
        before = b"".join(sink.read(need) or b"" for need in task.needs)
        for name in task.sections:
            self.context.emit(f"writes {name}")
            result.sections[name] = sink.write(name, [before, name.encode()]).hex()
        sink.flush()
        return result
