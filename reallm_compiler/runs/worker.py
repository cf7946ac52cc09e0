"""The worker process: it takes tasks from the process that schedules them and answers with results.

It is started as `python -c START NUMBER`, where NUMBER is its end of a socket. It never imports the
caller's `__main__`: a script without a main guard, a notebook or `python -` may start workers too.
Over the socket come the caller's `sys.path`, the job, and then one message for each task; an empty
message asks to halt, and the end of the socket, which is there as soon as the scheduling process
is gone, ends this one.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from traceback import format_exception
from typing import Any

from reallm_compiler.runs.job import Context, Job, Runner
from reallm_compiler.runs.tasks import TaskResult

START = """\
import sys
from multiprocessing.connection import Connection
line = Connection(int(sys.argv[1]))
sys.path[:] = line.recv()
from reallm_compiler.runs.worker import serve
serve(line)
"""
"""What a worker process runs."""

HALT = b""
"""The message that asks to begin no task and to leave a training at the end of its epoch."""

READY = "ready"
"""The first answer: from now on tasks are begun."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """An event of the task under way."""

    event: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer for a task that raised."""

    error: BaseException


def serve(line: Connection) -> None:
    """Answer the scheduling process until it closes the socket."""
    # SIGINT and SIGTERM are blocked since the process was started; only the parent acts on them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    halt = threading.Event()
    # It begins before torch is imported, so that the parent never blocks while it sends.
    threading.Thread(target=_receive, args=(line, messages, halt), daemon=True).start()
    context = Context(lambda event: line.send(Emitted(event)), halt.is_set)
    with ExitStack() as stack:
        try:
            job: Job = pickle.loads(messages.get())
            runner = stack.enter_context(job.open(context))
        # Whatever is wrong is the parent's to raise.
        except BaseException as error:
            line.send(failure_of(error))
            return
        line.send(READY)
        while True:
            line.send(answer(runner, messages.get(), halt))


def answer(runner: Runner, message: bytes, halt: threading.Event) -> TaskResult | Failure | None:
    """The result of a pickled task, its `Failure`, or None if a halt came before it was begun."""
    if halt.is_set():
        return None
    try:
        return runner.run(pickle.loads(message))
    # Whatever is wrong is the parent's to raise.
    except BaseException as error:
        return failure_of(error)


def failure_of(error: BaseException) -> Failure:
    """An error that can be sent: with this process's traceback, or its text if it cannot be."""
    trace = "".join(format_exception(error))
    error.add_note(f"in a worker process:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    # An exception class of any library may refuse to be pickled, in any way.
    except Exception:
        return Failure(RuntimeError(trace))
    return Failure(error)


def _receive(line: Connection, messages: queue.SimpleQueue[bytes], halt: threading.Event) -> None:
    """Pass the parent's messages on; end this process when the parent is gone."""
    try:
        while True:
            message = line.recv_bytes()
            if message == HALT:
                halt.set()
            else:
                messages.put(message)
    except (EOFError, OSError):
        os._exit(1)
