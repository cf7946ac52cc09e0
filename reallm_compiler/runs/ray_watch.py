"""A Ray cluster is looked at all the time, so that its loss is an error and not an end.

Ray ends the process some time after the cluster is lost, without an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.ray_nodes import Node

WATCH_SECONDS = 2.0
"""Seconds between two looks at the cluster."""

LOST_SECONDS = 25.0
"""Seconds without an answer after which the cluster is lost; Ray itself gives up after 60."""


class Watch:
    """Looks at a cluster all the time.

    Args:
        look: gives the nodes; does not return while the cluster's head is gone.
        own: id of this process's node.

    Attributes:
        nodes: those that were alive at the last look.
    """

    def __init__(self, look: Callable[[], list[Node]], own: str) -> None:
        self._look = look
        self._own = own
        self._end = threading.Event()
        self._seen = time.monotonic()
        self._own_is_gone = False
        self.nodes = [node for node in look() if node["Alive"]]
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def lost(self) -> CompileError | None:
        """The error of a cluster that does not answer any more; None while it does."""
        silent = time.monotonic() - self._seen > LOST_SECONDS
        if not silent and not self._own_is_gone:
            return None
        return CompileError(
            "the cluster is lost",
            note=f"its head has not answered for {LOST_SECONDS:.0f} seconds"
            if silent
            else "the node of this process is gone",
            hint="start the cluster again, then run the same command again to resume",
        )

    def end(self) -> None:
        """Look no more."""
        self._end.set()

    def _watch(self) -> None:
        while not self._end.wait(WATCH_SECONDS):
            # Whatever goes wrong, time passes without an answer.
            with suppress(Exception):
                nodes = [node for node in self._look() if node["Alive"]]
                self._own_is_gone = all(node["NodeID"] != self._own for node in nodes)
                self.nodes = nodes
                self._seen = time.monotonic()
