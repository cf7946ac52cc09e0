"""Worker processes: the same encoder, several times.

Workers are started afresh (no fork: torch's threads do not survive one) and get the plan once.
A worker ignores SIGINT, so that Ctrl-C reaches the compile alone, which lets each worker end its
unit. Errors travel back as themselves.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from reallm_compiler.errors import CompileError
from reallm_compiler.execute.encode import Encoder, UnitResult, fix_numerics
from reallm_compiler.execute.stop import StopRequest
from reallm_compiler.execute.units import Unit
from reallm_compiler.plan.model import Plan
from reallm_compiler.sources import Inventory

_encoder: Encoder | None = None
"""The encoder of a worker process."""


def _start(plan: Plan, inventory: Inventory, path: Path | None, device: str) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fix_numerics(torch.device(device))
    _encoder = Encoder(plan, inventory, path, device)


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
    """

    def __init__(
        self, plan: Plan, inventory: Inventory, path: Path | None, device: str, workers: int
    ) -> None:
        self.workers = workers
        self._executor = ProcessPoolExecutor(
            max_workers=workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(plan, inventory, path, device),
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
            done, running = wait(running, return_when=FIRST_COMPLETED)
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
                hint="run the same command again to go on, with fewer `--workers` if memory is short",
            ) from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the processes."""
        self._executor.shutdown(wait=True, cancel_futures=True)
