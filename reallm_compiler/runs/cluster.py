"""A Ray cluster as a user names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """A Ray cluster that does the tasks of a run.

    Attributes:
        address: `local` starts one on this machine, `auto` takes the one that this machine is a
            node of, else HOST:PORT of the head.
        shared_storage: all nodes see the output under its path, and write it in place.
    """

    address: str
    shared_storage: bool = False
