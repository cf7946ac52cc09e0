"""Worker processes: each opens the job for itself and does one task at a time.

Workers are started afresh (no fork: torch's threads do not survive one) and get the job once; see
`worker`. A worker ignores SIGINT and SIGTERM from its start, since Ctrl-C, `kill` and batch systems
signal the whole group: the parent alone handles them, and lets each worker end its task, or save
the training under way and stop. A worker ends with its parent, however that ended. Errors come back
as themselves.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.job import Job
from reallm_compiler.runs.stop import StopRequest, block_signals
from reallm_compiler.runs.tasks import Schedule, Task, TaskResult
from reallm_compiler.runs.worker import HALT, READY, START, Emitted, Failure

POLL_SECONDS = 0.2
"""Seconds after which a request to stop is looked for while no worker answers."""


class ProcessPool:
    """Runs tasks in worker processes (`backends.Backend`).

    Args:
        workers: how many processes, at most.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def results(
        self, job: Job, schedule: Schedule, stop: StopRequest, emit: Callable[[Any], None]
    ) -> Generator[TaskResult, None, None]:
        """See `Backend`.

        Raises:
            Interrupted: a worker died after a stop was asked for.
            CompileError: a worker died.
        """
        pool = Pool(job, self.workers, stop, emit)
        try:
            yield from pool.run(schedule)
        finally:
            pool.close()


class Pool:
    """The running worker processes of one job.

    Args:
        job: what they open.
        workers: how many processes, at most.
        stop: no new task is begun once it is asked for.
        emit: is called with the events of tasks.
    """

    def __init__(
        self, job: Job, workers: int, stop: StopRequest, emit: Callable[[Any], None]
    ) -> None:
        self.workers = workers
        self._stop = stop
        self._emit = emit
        self._job = pickle.dumps(job)
        self._started: list[Worker] = []

    def run(self, schedule: Schedule) -> Iterator[TaskResult]:
        """Results in order of completion.

        Raises:
            Interrupted: a worker died after a stop was asked for.
            CompileError: a worker died.
            ReallmError: what a task raised; tasks under way are finished and yielded first.
        """
        failure: BaseException | None = None
        while True:
            while len(self._busy) < self.workers and not self._stop.requested and failure is None:
                task = schedule.next()
                if task is None:
                    break
                failure = self._assign(task)
            if self._stop.requested:
                self._halt()
            if not self._busy:
                break
            for worker in self._answering(POLL_SECONDS):
                answer = self._receive(worker)
                if isinstance(answer, Failure):
                    failure = failure or answer.error
                elif answer is not None:
                    schedule.finish(answer.task)
                    yield answer
            if isinstance(failure, WorkerDiedError):
                self._halt()
        if isinstance(failure, WorkerDiedError) and self._stop.requested:
            raise self._stop.interrupted() from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the processes; they end their tasks first, unless the stop is urgent."""
        if self._stop.urgent:
            self._kill()
        try:
            self._halt()
            while self._busy:
                for worker in self._answering(None):
                    self._receive(worker)
        except BaseException:  # a signal more, while tasks end
            self._kill()
            raise
        finally:
            for worker in self._started:
                worker.end()

    @property
    def _busy(self) -> list[Worker]:
        return [worker for worker in self._started if worker.busy]

    def _assign(self, task: Task) -> BaseException | None:
        """Give a task to a worker that is idle, or to a new one; the error if that failed."""
        idle = [worker for worker in self._started if not worker.busy]
        try:
            if not idle:
                idle = [Worker()]
                self._started += idle
                idle[0].begin(self._job)
            idle[0].assign(task)
        except OSError as error:
            return (
                idle[0].death(error)
                if idle
                else CompileError(
                    f"cannot start a worker process: {error.strerror}", hint="use `--workers 1`"
                )
            )
        return None

    def _answering(self, seconds: float | None) -> list[Worker]:
        """The busy workers that have sent something, as soon as there is one."""
        ready = wait([worker.line for worker in self._busy], seconds)
        return [worker for worker in self._busy if worker.line in ready]

    def _receive(self, worker: Worker) -> TaskResult | Failure | None:
        """The worker's result or failure; an event of its task is passed on."""
        answer = worker.receive()
        if isinstance(answer, Emitted):
            self._emit(answer.event)
            return None
        return answer

    def _halt(self) -> None:
        """Let workers leave trainings and begin nothing; those that are not up yet just end."""
        for worker in self._busy:
            worker.halt()

    def _kill(self) -> None:
        """End the processes at once: a section that is torn so is not in the journal."""
        for worker in self._started:
            worker.kill()


class WorkerDiedError(CompileError):
    """A worker process is gone, and its task with it."""


class Worker:
    """A worker process and our end of its socket.

    Attributes:
        line: the socket.
        busy: it has a task, and has not answered yet.
    """

    def __init__(self) -> None:
        self.line, theirs = Pipe()
        self.busy = False
        self._ready = False
        self._halted = False
        try:
            number = theirs.fileno()
            # `-P`: the modules of the working folder are no part of the caller's path.
            command = [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", START]
            with block_signals():  # until it has set its own handlers
                self._process = subprocess.Popen(
                    [*command, str(number)], stdin=subprocess.DEVNULL, pass_fds=[number]
                )
        except BaseException:
            self.line.close()
            raise
        finally:
            theirs.close()

    def begin(self, job: bytes) -> None:
        """Send the pickled job; OSError if the process is gone."""
        self.line.send(sys.path)
        self.line.send_bytes(job)

    def assign(self, task: Task) -> None:
        """Send a task; OSError if the process is gone."""
        self.line.send_bytes(pickle.dumps(task))
        self.busy = True

    def receive(self) -> TaskResult | Emitted | Failure | None:
        """One answer; None where it is no result, and a `Failure` where the process is gone."""
        try:
            answer = self.line.recv()
        except (EOFError, OSError) as error:
            self.busy = False
            return Failure(self.death(error))
        if answer == READY:
            self._ready = True
            return None
        self.busy = isinstance(answer, Emitted)
        received: TaskResult | Emitted | Failure | None = answer
        return received

    def halt(self) -> None:
        """Ask it to begin nothing and to leave a training; it ends at once if it is not up yet."""
        if not self._ready:
            self.kill()
            self.busy = False
        elif not self._halted:
            self._halted = True
            with contextlib.suppress(OSError):  # it is gone, and `receive` will report it
                self.line.send_bytes(HALT)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def end(self) -> None:
        """End the process, which is idle or killed."""
        self.line.close()
        self._process.wait()

    def death(self, cause: BaseException) -> WorkerDiedError:
        """The error of a process that is gone."""
        self.line.close()
        code = self._process.wait()
        error = WorkerDiedError(
            "a worker process died",
            note="it was killed from outside, most often because memory ran out"
            if code < 0
            else f"it ended with code {code}; its output is printed above",
            hint="run the same command again to resume, with fewer `--workers` if memory is short",
        )
        error.__cause__ = cause
        return error
