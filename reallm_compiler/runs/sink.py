"""Where sections go: into a reserved file, or nowhere when a recipe is only tried."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from reallm_compiler.errors import CompileError
from reallm_formats import Closing, Layout, Writer
from reallm_formats.writer import SectionWriter

Part = bytes | memoryview


class Sink(Protocol):
    """Takes sections, in any order."""

    def write(self, name: str, parts: Iterable[Part]) -> bytes:
        """Store a section by parts that follow each other; its SHA-256, 32 bytes."""
        ...

    def read(self, name: str) -> bytes | None:
        """A section that was stored, by this process or another; None if nothing is stored."""
        ...

    def flush(self) -> None:
        """Make durable what was written."""
        ...

    def close(self) -> None:
        """Release it; nothing more is written."""
        ...


class FileSink(Closing):
    """A reserved archive.

    Args:
        path: the file that was reserved for `layout`.
        layout: where its sections lie.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._writer = Writer.open(path, layout)

    def write(self, name: str, parts: Iterable[Part]) -> bytes:
        """See `Sink`.

        Raises:
            CompileError: the disk refuses.
        """
        with _disk_errors(name):
            return self._writer.write_parts(name, parts)

    def begin(self, name: str) -> OpenSection:
        """A section to be filled by parts as they come; several may be under way."""
        return OpenSection(name, self._writer.begin(name))

    def read(self, name: str) -> bytes:
        """See `Sink`; what a section holds that was not written yet is undefined."""
        return self._writer.read(name)

    def flush(self) -> None:
        """See `Sink`."""
        self._writer.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class OpenSection:
    """A section of a reserved archive that is filled part by part; made by `FileSink.begin`."""

    def __init__(self, name: str, writer: SectionWriter) -> None:
        self._name = name
        self._writer = writer

    def add(self, part: Part) -> None:
        """Write the next part.

        Raises:
            CompileError: the disk refuses.
        """
        with _disk_errors(self._name):
            self._writer.add(part)

    def finish(self) -> bytes:
        """The section's SHA-256, 32 bytes, once all its parts are written."""
        return self._writer.finish()


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CompileError(
            f"cannot write: {error.strerror}",
            location=f"section {name}",
            hint="free disk space and run the same command again: finished matrices are kept",
        ) from error


class NullSink(Closing):
    """Computes digests and keeps nothing."""

    def write(self, name: str, parts: Iterable[Part]) -> bytes:
        """See `Sink`."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
            del part  # let go before the next one is made
        return digest.digest()

    def read(self, name: str) -> None:
        """See `Sink`."""
        return

    def flush(self) -> None:
        """See `Sink`."""

    def close(self) -> None:
        """See `Sink`."""
