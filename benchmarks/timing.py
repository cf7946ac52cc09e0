"""The one timer of the benchmarks: calls in turn within one process, ratios pair by pair.

Other work on the machine slows all that runs at the same moment, so a ratio of calls that follow
each other says what a time alone does not. Both clocks are read: the processor seconds of this
process and of the processes that it waited for, and the wall.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Result = TypeVar("Result")


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


CLOCKS: dict[str, Callable[[], float]] = {"cpu": cpu_seconds, "wall": time.perf_counter}


class Timer:
    """Seconds of calls, by name.

    Attributes:
        clock: The clock that is asked for where none is named.
        before: Called before each call, and not timed.
        seconds: For each clock and each name the seconds of its calls, in their order.
    """

    def __init__(self, clock: str = "cpu", before: Callable[[], object] | None = None) -> None:
        self.clock = clock
        self.before = before
        self.seconds: dict[str, dict[str, list[float]]] = {name: {} for name in CLOCKS}

    def run(self, name: str, call: Callable[[], Result]) -> Result:
        """Time a call under a name; what it returned."""
        if self.before is not None:
            self.before()
        began = {clock: now() for clock, now in CLOCKS.items()}
        result = call()
        for clock, now in CLOCKS.items():
            self.seconds[clock].setdefault(name, []).append(now() - began[clock])
        return result

    def median(self, name: str, clock: str | None = None) -> float:
        """Median of the seconds of a name."""
        return statistics.median(self.seconds[clock or self.clock][name])

    def ratio(self, name: str, other: str, clock: str | None = None) -> float:
        """Median of the ratios of two names, call by call."""
        seconds = self.seconds[clock or self.clock]
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: str = "cpu",
    before: Callable[[], object] | None = None,
) -> Timer:
    """Time calls in turn (A B A B ...), after one round that does not count."""
    for call in calls.values():
        call()
    timer = Timer(clock, before)
    for _ in range(rounds):
        for name, call in calls.items():
            timer.run(name, call)
    return timer


def add_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The options that timings share."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")


def conditions(given: argparse.Namespace) -> str:
    """How and where it is timed, for the head of a table."""
    import torch

    return (
        f"{given.threads} thread(s), {given.rounds} rounds, {given.clock} clock; "
        f"torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}"
    )
