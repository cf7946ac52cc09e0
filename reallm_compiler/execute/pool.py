"""Where units are done: here, or by worker processes with the same encoder.

Workers are started afresh (no fork: torch's threads do not survive one) and get the plan once; see
`worker`. A worker ignores SIGINT and SIGTERM from its birth, since Ctrl-C, `kill` and batch systems
strike the whole group: the compile alone hears them, and lets each worker end its unit, or save the
training under way and stop. A worker ends with the compile, however that went. Errors travel back
as themselves.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.encode import Encoder, UnitResult, fix_numerics
from reallm_compiler.execute.events import Event
from reallm_compiler.execute.stop import StopRequest, signals_held
from reallm_compiler.execute.training import Watches
from reallm_compiler.execute.units import Unit
from reallm_compiler.execute.worker import HALT, READY, START, Failure, Job
from reallm_compiler.planning.model import Plan

LISTEN_SECONDS = 0.2
"""Seconds after which a request to stop is looked for while no worker answers."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where units are done.

    Attributes:
        plan, inventory: what of.
        partial: into which file; None for a trial.
        device: on what.
        run: digest of the run's identity.
        tell: hears of trainings.
    """

    plan: Plan
    inventory: Inventory
    partial: Path | None
    device: torch.device
    run: str
    tell: Callable[[Event], None]


def results(
    site: Site,
    workers: int,
    waves: tuple[list[Unit], list[Unit]],
    done: Mapping[str, Any],
    stop: StopRequest,
) -> Generator[UnitResult, None, None]:
    """Results of the units that are not in `done` yet, wave after wave; to be closed by the caller.

    Raises:
        Interrupted: a stop was asked for, and units are left.
        CompileError: a worker died.
        ReallmError: what a unit raised.
    """
    todo = [[unit for unit in wave if unit.key not in done] for wave in waves]
    if workers == 1:
        yield from _run_here(site, todo, stop)
    else:
        pool = Pool(site, workers, stop)
        try:
            for wave in todo:
                yield from pool.run(wave)
        finally:
            pool.close()
    if stop.requested and any(unit.key not in done for wave in todo for unit in wave):
        raise stop.interrupted()


def _run_here(site: Site, todo: list[list[Unit]], stop: StopRequest) -> Iterator[UnitResult]:
    watches = Watches(
        partial=site.partial, run=site.run, tell=site.tell, stopped=lambda: stop.requested
    )
    with _fixed_numerics(site.device):
        encoder = Encoder(site.plan, site.inventory, site.partial, str(site.device), watches)
        try:
            for wave in todo:
                for unit in wave:
                    if stop.requested:
                        return
                    yield encoder.run(unit)
        finally:
            encoder.close()


@contextlib.contextmanager
def _fixed_numerics(device: torch.device) -> Iterator[None]:
    """The fixed settings of torch, and the caller's own again afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch_mode: Any = torch.utils.deterministic  # its one attribute is made at run time
    filled = torch_mode.fill_uninitialized_memory
    fix_numerics(device)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch_mode.fill_uninitialized_memory = filled


class Pool:
    """Worker processes for one site.

    Args:
        site: where units are done.
        workers: how many processes.
        stop: no new unit is begun once it is asked for.
    """

    def __init__(self, site: Site, workers: int, stop: StopRequest) -> None:
        self.workers = workers
        self._stop = stop
        self._tell = site.tell
        self._job = pickle.dumps(
            Job(
                plan=site.plan,
                inventory=site.inventory,
                partial=site.partial,
                device=str(site.device),
                run=site.run,
            )
        )
        self._started: list[Worker] = []

    def run(self, units: Iterable[Unit]) -> Iterator[UnitResult]:
        """Results in order of completion.

        Raises:
            Interrupted: a worker died after a stop was asked for.
            CompileError: a worker died.
            ReallmError: what a unit raised; units under way are finished and yielded first.
        """
        waiting = iter(units)
        failure: BaseException | None = None
        while True:
            while len(self._busy) < self.workers and not self._stop.requested and failure is None:
                unit = next(waiting, None)
                if unit is None:
                    break
                failure = self._give(unit)
            if self._stop.requested:
                self._halt()
            if not self._busy:
                break
            for worker in self._answering(LISTEN_SECONDS):
                answer = self._hear(worker)
                if isinstance(answer, Failure):
                    failure = failure or answer.error
                elif answer is not None:
                    yield answer
            if isinstance(failure, WorkerDiedError):
                self._halt()
        if isinstance(failure, WorkerDiedError) and self._stop.requested:
            raise self._stop.interrupted() from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the processes; they end their units first, unless the stop is urgent."""
        if self._stop.urgent:
            self._kill()
        try:
            self._halt()
            while self._busy:
                for worker in self._answering(None):
                    self._hear(worker)
        except BaseException:  # a signal more, while units end
            self._kill()
            raise
        finally:
            for worker in self._started:
                worker.end()

    @property
    def _busy(self) -> list[Worker]:
        return [worker for worker in self._started if worker.busy]

    def _give(self, unit: Unit) -> BaseException | None:
        """Have a unit done by a worker that is idle, or by a new one; why it cannot be."""
        idle = [worker for worker in self._started if not worker.busy]
        try:
            if not idle:
                idle = [Worker()]
                self._started += idle
                idle[0].begin(self._job)
            idle[0].give(unit)
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
        """The busy workers that have said something, as soon as there is one."""
        ready = wait([worker.line for worker in self._busy], seconds)
        return [worker for worker in self._busy if worker.line in ready]

    def _hear(self, worker: Worker) -> UnitResult | Failure | None:
        """The worker's result or failure; what it tells meanwhile is passed on."""
        heard = worker.hear()
        if isinstance(heard, Event):
            self._tell(heard)
            return None
        result: UnitResult | Failure | None = heard
        return result

    def _halt(self) -> None:
        """Let workers leave trainings and begin nothing; those that are not up yet just end."""
        for worker in self._busy:
            worker.halt()

    def _kill(self) -> None:
        """End the processes at once: a slot that is torn so is not in the journal."""
        for worker in self._started:
            worker.kill()


class WorkerDiedError(CompileError):
    """A worker process is gone, and its unit with it."""


class Worker:
    """A worker process and our end of its socket.

    Attributes:
        line: the socket.
        busy: it has a unit, and has not answered yet.
    """

    def __init__(self) -> None:
        self.line, theirs = Pipe()
        self.busy = False
        self._ready = False
        self._halted = False
        try:
            number = theirs.fileno()
            # `-P`: the modules of the working folder are no part of the caller's path.
            words = [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", START]
            with signals_held():  # it is born so, until it has said what it ignores
                self._process = subprocess.Popen(
                    [*words, str(number)], stdin=subprocess.DEVNULL, pass_fds=[number]
                )
        except BaseException:
            self.line.close()
            raise
        finally:
            theirs.close()

    def begin(self, job: bytes) -> None:
        """Send what all units have in common; OSError if the process is gone."""
        self.line.send(sys.path)
        self.line.send_bytes(job)

    def give(self, unit: Unit) -> None:
        """Have a unit done; OSError if the process is gone."""
        self.line.send_bytes(unit.key.encode())
        self.busy = True

    def hear(self) -> Any:  # noqa: ANN401
        """One answer; None where it is no result, and a `Failure` where the process is gone."""
        try:
            answer = self.line.recv()
        except (EOFError, OSError) as error:
            self.busy = False
            return Failure(self.death(error))
        if answer == READY:
            self._ready = True
            return None
        self.busy = isinstance(answer, Event)
        return answer

    def halt(self) -> None:
        """Ask it to begin nothing and to leave a training; it ends at once if it is not up yet."""
        if not self._ready:
            self.kill()
            self.busy = False
        elif not self._halted:
            self._halted = True
            with contextlib.suppress(OSError):  # it is gone, and `hear` will say so
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
            else f"it ended with code {code}; what it said stands above",
            hint="run the same command again to go on, with fewer `--workers` if memory is short",
        )
        error.__cause__ = cause
        return error
