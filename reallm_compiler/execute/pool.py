"""Worker processes: the same encoder, several times.

Workers are started afresh (no fork: torch's threads do not survive one) and get the plan once.
A worker ignores SIGINT, so that Ctrl-C reaches the compile alone, which lets each worker end its
unit, or save the training under way and stop. Errors travel back as themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import multiprocessing.synchronize
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from reallm_compiler.errors import CompileError
from reallm_compiler.execute.encode import Encoder, UnitResult, fix_numerics
from reallm_compiler.execute.events import Training
from reallm_compiler.execute.stop import StopRequest
from reallm_compiler.execute.training import Watches
from reallm_compiler.execute.units import Unit
from reallm_compiler.plan.model import Plan
from reallm_compiler.sources import Inventory

LISTEN_SECONDS = 0.2
"""Seconds after which workers are listened to while none has finished."""

_encoder: Encoder | None = None
"""The encoder of a worker process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What a worker is connected with.

    Attributes:
        run: digest of the run's identity.
        events: takes the worker's events.
        halt: set when trainings must stop.
    """

    run: str
    events: multiprocessing.queues.Queue[Training]
    halt: multiprocessing.synchronize.Event


def _start(plan: Plan, inventory: Inventory, path: Path | None, device: str, line: Line) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fix_numerics(torch.device(device))
    watches = Watches(partial=path, run=line.run, tell=line.events.put, stopped=line.halt.is_set)
    _encoder = Encoder(plan, inventory, path, device, watches)


def _end_with_parent() -> None:
    """End this worker when the compile that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _run(unit: Unit) -> UnitResult:
    if _encoder is None:
        raise CompileError("a worker was not started")
    return _encoder.run(unit)


class Pool:
    """Worker processes for one plan.

    Args:
        plan, inventory, path, device: as for `Encoder`.
        workers: how many processes.
        run: digest of the run's identity.
        tell: hears of trainings.
    """

    def __init__(
        self,
        plan: Plan,
        inventory: Inventory,
        path: Path | None,
        device: str,
        workers: int,
        run: str,
        tell: Callable[[Training], None],
    ) -> None:
        self.workers = workers
        self._tell = tell
        context = multiprocessing.get_context("spawn")
        self._line = Line(run=run, events=context.Queue(), halt=context.Event())
        self._executor = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=context,
            initializer=_start,
            initargs=(plan, inventory, path, device, self._line),
        )

    def run(self, units: Iterable[Unit], stop: StopRequest) -> Iterator[UnitResult]:
        """Results in order of completion; no new unit is begun once `stop` is set.

        Raises:
            CompileError: a worker died.
            ReallmError: what a unit raised; units under way are finished and yielded first.
        """
        waiting = iter(units)
        running: set[Future[UnitResult]] = set()
        failure: BaseException | None = None
        while True:
            while len(running) < self.workers and not stop.requested and failure is None:
                unit = next(waiting, None)
                if unit is None:
                    break
                try:
                    running.add(self._executor.submit(_run, unit))
                except BrokenProcessPool as error:
                    failure = error
            if not running:
                break
            done, running = wait(running, timeout=LISTEN_SECONDS, return_when=FIRST_COMPLETED)
            if stop.requested:
                self._line.halt.set()
            self._hear()
            for future in done:
                raised = future.exception()
                if raised is None:
                    yield future.result()
                elif failure is None:
                    failure = raised
        if isinstance(failure, BrokenProcessPool):
            raise CompileError(
                "a worker process died",
                note="it was killed from outside, most often because memory ran out",
                hint="run the same command again to go on, with fewer `--workers` if memory "
                "is short",
            ) from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the processes."""
        self._line.halt.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._hear()
        self._line.events.close()

    def _hear(self) -> None:
        """Pass on what the workers have told."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._tell(self._line.events.get_nowait())
