"""A Ray cluster is polled, so that its loss is an error and not an end.

Ray ends the process some time after the cluster is lost, without an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.ray_nodes import Node

POLL_SECONDS = 2.0
"""Seconds between two polls of the cluster."""

LOST_SECONDS = 25.0
"""Seconds without an answer after which the cluster is lost; Ray itself gives up after 60."""


class ClusterMonitor:
    """Polls the nodes of a cluster in a thread.

    Args:
        list_nodes: gives the nodes; does not return while the cluster's head is gone.
        own: id of this process's node.

    Attributes:
        nodes: those that were alive at the last poll.
    """

    def __init__(self, list_nodes: Callable[[], list[Node]], own: str) -> None:
        self._list_nodes = list_nodes
        self._own = own
        self._end = threading.Event()
        self._seen = time.monotonic()
        self._own_is_gone = False
        self.nodes = [node for node in list_nodes() if node["Alive"]]
        threading.Thread(target=self._poll_nodes, daemon=True).start()

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
        """Stop polling."""
        self._end.set()

    def _poll_nodes(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            # Whatever goes wrong, time passes without an answer.
            with suppress(Exception):
                nodes = [node for node in self._list_nodes() if node["Alive"]]
                self._own_is_gone = all(node["NodeID"] != self._own for node in nodes)
                self.nodes = nodes
                self._seen = time.monotonic()
