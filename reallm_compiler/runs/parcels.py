"""Sections on their way from a worker to the process that holds the output.

A worker that does not see the output sends what it writes as parcels of a bounded size; the process
that does writes each as it comes, so that no side ever holds a large section whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from reallm_compiler.errors import CompileError
from reallm_compiler.runs.sink import FileSink, OpenSection, Part
from reallm_compiler.runs.tasks import TaskResult
from reallm_formats import Closing, Layout

PARCEL_BYTES = 16 * 2**20
"""Bytes of a parcel, at most."""

PARCELS_AHEAD = 2
"""Parcels of a task that are made and not yet taken, at most."""


@dataclass(frozen=True, slots=True)
class ReservedFile:
    """The output of a run: how to open it in a process that sees it.

    Attributes:
        path: the reserved file.
        layout: where its sections lie.
    """

    path: Path
    layout: Layout

    def open(self) -> FileSink:
        """The file, to write sections and to read them."""
        return FileSink(self.path, self.layout)


@dataclass(frozen=True, slots=True)
class Parcel:
    """Parts of sections, in order: the name of a section and the bytes that come next in it."""

    parts: tuple[tuple[str, bytes], ...]


class ParcelSink(Closing):
    """Sends sections away (`sink.Sink`).

    Args:
        send: sends a parcel, and waits while too many are not yet taken.
        read: gets a section that was stored, by its name.
    """

    def __init__(self, send: Callable[[Parcel], None], read: Callable[[str], bytes]) -> None:
        self._send = send
        self._read = read
        self._parts: list[tuple[str, bytes]] = []
        self._bytes = 0

    def write(self, name: str, parts: Iterable[Part]) -> bytes:
        """See `Sink`."""
        digest = hashlib.sha256()
        self._parts.append((name, b""))  # a section of no bytes is sent too
        for part in parts:
            view = memoryview(part)
            view = view.cast("B") if view.nbytes else view
            digest.update(view)
            for start in range(0, view.nbytes, PARCEL_BYTES):
                self._add(name, bytes(view[start : start + PARCEL_BYTES]))
            del part, view
        return digest.digest()

    def read(self, name: str) -> bytes:
        """See `Sink`."""
        return self._read(name)

    def flush(self) -> None:
        """Send what is left."""
        if self._parts:
            self._send(Parcel(tuple(self._parts)))
        self.discard()

    def discard(self) -> None:
        """Forget what is not sent."""
        self._parts, self._bytes = [], 0

    def close(self) -> None:
        """See `Sink`."""

    def _add(self, name: str, data: bytes) -> None:
        if self._bytes + len(data) > PARCEL_BYTES:
            self.flush()
        self._parts.append((name, data))
        self._bytes += len(data)


class Arrivals:
    """The sections of one attempt at a task, written as their parcels come.

    Args:
        sink: where they go.
    """

    def __init__(self, sink: FileSink) -> None:
        self._sink = sink
        self._sections: dict[str, OpenSection] = {}

    def add(self, parcel: Parcel) -> None:
        """Write what a parcel holds.

        Raises:
            CompileError: the disk refuses.
        """
        for name, data in parcel.parts:
            if name not in self._sections:
                self._sections[name] = self._sink.begin(name)
            self._sections[name].add(data)

    def finish(self, result: TaskResult) -> None:
        """Make durable what came.

        Raises:
            CompileError: it is not what the worker has sent, or the disk refuses.
        """
        for name, hexes in result.sections.items():
            if name not in self._sections or self._sections[name].finish().hex() != hexes:
                raise CompileError(
                    "a section is not as its worker has sent it",
                    location=f"section {name}",
                    hint="look at the nodes' memory and network, then run the same command again "
                    "to resume",
                )
        self._sink.flush()
