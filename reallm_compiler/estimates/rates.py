"""Measured rates: what an operation of each kind costs one core, in seconds.

`rates.json` holds them beside the timings that they were fitted to; `python -m benchmarks.rates`
measures and fits them. An operation that was not measured is not there, and nothing stands for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

FILE = "rates.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One timing.

    Attributes:
        title: what was timed.
        seconds: of the processor, one thread.
        work: its operations by name.
    """

    title: str
    seconds: float
    work: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rates of one class of machine.

    Attributes:
        machine: processor and software, in words.
        costs: seconds of one core for an operation, by name.
        points: the timings that they rest on.
    """

    machine: str
    costs: Mapping[str, float]
    points: tuple[Point, ...] = field(default=())

    def seconds(self, work: Mapping[str, int]) -> float | None:
        """Seconds of one core; None where an operation was not measured."""
        if self.missing(work):
            return None
        return sum(count * self.costs.get(name, 0.0) for name, count in work.items())

    def missing(self, work: Mapping[str, int]) -> set[str]:
        """Operations that were not measured."""
        return {name for name, count in work.items() if count and name not in self.costs}

    def to_json(self) -> dict[str, Any]:
        """The contents of the file."""
        return {
            "machine": self.machine,
            "seconds_per_operation": dict(sorted(self.costs.items())),
            "points": [
                {"title": one.title, "seconds": one.seconds, "work": dict(one.work)}
                for one in self.points
            ],
        }


def rates_of(plain: Mapping[str, Any]) -> Rates:
    """Rates from the contents of a file."""
    return Rates(
        machine=plain["machine"],
        costs=plain["seconds_per_operation"],
        points=tuple(Point(**one) for one in plain["points"]),
    )


@cache
def measured_rates() -> Rates:
    """The rates that come with reallm."""
    return rates_of(json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8")))
