"""Tasks on machines: when they end, and what that costs."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

HOUR = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A node as it is rented.

    Attributes:
        cores: of its processor.
        memory: bytes.
        core_price: dollars for a core and an hour.
        gpu_price: dollars for a GPU and an hour.
        gpu_flops: assumed floating-point operations of a GPU in a second; None: no GPU was
            measured, and nothing is assumed.
        gpus: of a node.
    """

    cores: int = 64
    memory: int = 512 * 10**9
    core_price: float = 0.05
    gpu_price: float = 4.0
    gpu_flops: float | None = None
    gpus: int = 8

    def workers(self, each: int) -> int:
        """Workers of one core that memory allows, one at least.

        Args:
            each: bytes of a worker, its interpreter included.
        """
        return max(1, min(self.cores, self.memory // max(1, each)))

    def rent(self, nodes: int, seconds: float) -> float:
        """Dollars for the cores of so many nodes, idle ones included."""
        return nodes * self.cores * seconds / HOUR * self.core_price


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work for one worker.

    Attributes:
        seconds: that it takes.
        after: key of what must be finished before; None if nothing.
        key: under which others wait for it.
    """

    seconds: float
    after: str | None = None
    key: str | None = None


def makespan(tasks: Iterable[Task], workers: int) -> float:
    """Seconds until the last task ends: first what others wait for, then the longest first.

    What is waited for must itself wait for nothing.
    """
    free = [0.0] * workers
    ended: dict[str, float] = {}
    order = sorted(tasks, key=lambda task: (task.key is None, -task.seconds))
    for task in order:
        began = heapq.heappop(free)
        if task.after is not None:
            began = max(began, ended.get(task.after, 0.0))
        end = began + task.seconds
        heapq.heappush(free, end)
        if task.key is not None:
            ended[task.key] = end
    return max(free)
