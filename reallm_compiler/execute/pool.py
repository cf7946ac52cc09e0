"""Where units are done: here, or by worker processes with the same encoder.

Workers are started afresh (no fork: torch's threads do not survive one) and get the plan once.
A worker ignores SIGINT and SIGTERM from its birth, since Ctrl-C, `kill` and batch systems strike
the whole group: the compile alone hears them, and lets each worker end its unit, or save the
training under way and stop. A worker ends with the compile, however that went. Errors travel back
as themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.errors import CompileError
from reallm_compiler.execute.encode import Encoder, UnitResult, fix_numerics
from reallm_compiler.execute.events import Event, Training
from reallm_compiler.execute.stop import SIGNALS, StopRequest, signals_held
from reallm_compiler.execute.training import Watches
from reallm_compiler.execute.units import Unit
from reallm_compiler.plan.model import Plan
from reallm_compiler.sources import Inventory

LISTEN_SECONDS = 0.2
"""Seconds after which workers are listened to while none has finished."""

_encoder: Encoder | None = None
"""The encoder of a worker process."""

_line: Line | None = None
"""What a worker process is connected with."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What a worker is connected with.

    The flags are plain shared bytes: a worker that is killed can leave no lock on them.

    Attributes:
        run: digest of the run's identity.
        events: takes the worker's events.
        halt: 1 when trainings must stop, and no unit be begun.
        begun: 1 when a worker has begun a unit.
    """

    run: str
    events: multiprocessing.queues.Queue[Training]
    halt: ctypes.c_byte
    begun: ctypes.c_byte


def _start(plan: Plan, inventory: Inventory, path: Path | None, device: str, line: Line) -> None:
    global _encoder, _line
    _line = line
    for number in SIGNALS:  # held back until now
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fix_numerics(torch.device(device))
    watches = Watches(
        partial=path, run=line.run, tell=line.events.put, stopped=lambda: bool(line.halt.value)
    )
    _encoder = Encoder(plan, inventory, path, device, watches)


def _end_with_parent() -> None:
    """End this worker when the compile that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _run(unit: Unit) -> UnitResult | None:
    """Do a unit; None when a stop was asked for before it was begun."""
    if _encoder is None or _line is None:
        raise CompileError("a worker was not started")
    if _line.halt.value:
        return None
    _line.begun.value = 1
    return _encoder.run(unit)


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
        context = multiprocessing.get_context("spawn")
        self._line = Line(
            run=site.run,
            events=context.Queue(),
            halt=context.RawValue(ctypes.c_byte, 0),
            begun=context.RawValue(ctypes.c_byte, 0),
        )
        self._processes: list[BaseProcess] = []
        self._executor = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=context,
            initializer=_start,
            initargs=(site.plan, site.inventory, site.partial, str(site.device), self._line),
        )

    def run(self, units: Iterable[Unit]) -> Iterator[UnitResult]:
        """Results in order of completion.

        Raises:
            Interrupted: a worker died after a stop was asked for.
            CompileError: a worker died.
            ReallmError: what a unit raised; units under way are finished and yielded first.
        """
        waiting = iter(units)
        running: set[Future[UnitResult | None]] = set()
        failure: BaseException | None = None
        while True:
            while len(running) < self.workers and not self._stop.requested and failure is None:
                unit = next(waiting, None)
                if unit is None:
                    break
                try:
                    with signals_held():  # it may start a worker
                        running.add(self._executor.submit(_run, unit))
                        self._processes = list((self._executor._processes or {}).values())
                except BrokenProcessPool as error:
                    failure = error
            if not running:
                break
            done, running = wait(running, timeout=LISTEN_SECONDS, return_when=FIRST_COMPLETED)
            if self._stop.requested:
                self._line.halt.value = 1
                if not self._line.begun.value:
                    self._kill()  # the workers are still being started
            self._hear()
            for future in done:
                raised = future.exception()
                if raised is not None:
                    failure = failure or raised
                elif (result := future.result()) is not None:
                    yield result
        if isinstance(failure, BrokenProcessPool):
            self._kill()  # the others ignore the signal that the executor sends them
            if self._stop.requested:
                raise self._stop.interrupted() from failure
            raise CompileError(
                "a worker process died",
                note="it was killed from outside, most often because memory ran out",
                hint="run the same command again to go on, with fewer `--workers` if memory "
                "is short",
            ) from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the processes; they end their units first, unless the stop is urgent."""
        self._line.halt.value = 1
        if self._stop.urgent or self._executor._broken:
            self._kill()
        try:
            self._executor.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:  # a signal more, while units end
            self._kill()
            raise
        self._hear()
        self._line.events.close()

    def _kill(self) -> None:
        """End the processes at once: a slot that is torn so is not in the journal."""
        for process in self._processes:
            process.kill()

    def _hear(self) -> None:
        """Pass on what the workers have told."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._tell(self._line.events.get_nowait())
