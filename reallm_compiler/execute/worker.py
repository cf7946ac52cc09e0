"""The worker process: it takes the names of units from the compile and answers with results.

The compile starts it as `python -c START NUMBER`, where NUMBER is its end of a socket. It never
imports the caller's `__main__`: a script without a main guard, a notebook or `python -` may start
workers too. Over the socket come the caller's `sys.path`, a `Job`, and then one message for each
unit; an empty message asks to halt, and the end of the socket, which is there as soon as the
compile is gone, ends the process.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reallm_compiler.checkpoint import Inventory
    from reallm_compiler.execute.encode import Encoder
    from reallm_compiler.planning.model import Plan

START = """\
import sys
from multiprocessing.connection import Connection
line = Connection(int(sys.argv[1]))
sys.path[:] = line.recv()
from reallm_compiler.execute.worker import serve
serve(line)
"""
"""What a worker process runs."""

HALT = b""
"""The message that asks to begin no unit and to leave a training at the end of its epoch."""

READY = "ready"
"""The first answer: from now on units are begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all units of a worker have in common.

    Attributes:
        plan, inventory: what is encoded.
        partial: the file that is filled; None for a trial.
        device: where the numerical work runs, such as `cpu` or `cuda:0`.
        run: digest of the run's identity.
    """

    plan: Plan
    inventory: Inventory
    partial: Path | None
    device: str
    run: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer for a unit that raised."""

    error: BaseException


def serve(line: Connection) -> None:
    """Answer the compile until it closes the socket."""
    # SIGINT and SIGTERM are blocked since the process was started; only the compile acts on them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    halt = threading.Event()
    # The thread begins before torch is imported: the compile never waits for a reader.
    threading.Thread(target=_listen, args=(line, orders, halt), daemon=True).start()
    try:
        encoder = _encoder(pickle.loads(orders.get()), line, halt)
    # Whatever is wrong is the compile's to raise.
    except BaseException as error:
        line.send(failure_of(error))
        return
    line.send(READY)
    while True:
        line.send(answer(encoder, orders.get().decode(), halt))


def answer(encoder: Encoder, key: str, halt: threading.Event) -> Any:  # noqa: ANN401
    """The result of a unit, its `Failure`, or None if a halt came before it was begun."""
    if halt.is_set():
        return None
    try:
        return encoder.run(encoder.units[key])
    # Whatever is wrong is the compile's to raise.
    except BaseException as error:
        return failure_of(error)


def failure_of(error: BaseException) -> Failure:
    """An error that can travel: with this process's traceback, or as words if it cannot."""
    trace = "".join(format_exception(error))
    error.add_note(f"in a worker process:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    # An exception class of any library may refuse to be pickled, in any way.
    except Exception:
        return Failure(RuntimeError(trace))
    return Failure(error)


def _listen(line: Connection, orders: queue.SimpleQueue[bytes], halt: threading.Event) -> None:
    """Pass the compile's messages on; end the process when the compile is gone."""
    try:
        while True:
            message = line.recv_bytes()
            if message == HALT:
                halt.set()
            else:
                orders.put(message)
    except (EOFError, OSError):
        os._exit(1)


def _encoder(job: Job, line: Connection, halt: threading.Event) -> Encoder:
    import torch

    from reallm_compiler.execute.encode import Encoder, fix_numerics
    from reallm_compiler.execute.training import Watches

    fix_numerics(torch.device(job.device))
    watches = Watches(partial=job.partial, run=job.run, tell=line.send, stopped=halt.is_set)
    return Encoder(job.plan, job.inventory, job.partial, job.device, watches)
