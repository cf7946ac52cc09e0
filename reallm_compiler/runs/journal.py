"""The journal of a run: what is finished and on disk.

A text file beside the archive, one record per line: eight hex digits of CRC-32, a space, and a
JSON object. The first record is the identity of the run; each further one is a finished task with
the digests of its sections. A record is written after its sections are durable, so that a task in
the journal is a task in the file. A torn last line, left by a kill, is cut off.

The journal is also the lock: whoever holds it owns the output.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from reallm_compiler.errors import CompileError
from reallm_compiler.publish import open_locked
from reallm_formats import Closing
from reallm_formats.system import sync


class Journal(Closing):
    """An open, locked journal.

    Attributes:
        records: the records that were found, in order.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.records, good = _parse(_read_all(descriptor))
        os.ftruncate(descriptor, good)
        os.lseek(descriptor, good, os.SEEK_SET)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the journal and lock it.

        Raises:
            OutputError: another process writes the same output, or the folder is read-only.
        """
        return cls(path, open_locked(path))

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is durable.

        Raises:
            CompileError: the disk refuses it; the records before it stand.
        """
        body = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            sync(self._descriptor)
        except OSError as error:
            raise CompileError(
                f"cannot write the journal: {error.strerror}",
                location=str(self.path),
                hint="free disk space and run the same command again: finished matrices are kept",
            ) from error
        self.records.append(dict(record))

    def clear(self) -> None:
        """Forget everything, to start over."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.records = []

    def remove(self) -> None:
        """Delete the file; the lock lasts until `close`."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Records up to the first damaged line, and the length of the good part in bytes."""
    records: list[dict[str, Any]] = []
    good = 0
    for line in data.splitlines(keepends=True):
        record = _parse_line(line)
        if record is None:
            break
        records.append(record)
        good += len(line)
    return records, good


def _parse_line(line: bytes) -> dict[str, Any] | None:
    digits, space, body = line.partition(b" ")
    if not line.endswith(b"\n") or not space or digits != b"%08x" % zlib.crc32(body[:-1]):
        return None
    record = json.loads(body)
    return record if isinstance(record, dict) else None
