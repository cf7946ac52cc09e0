"""Writing an archive into a file that is reserved at full length first.

    create  reserves the file, so that a full disk shows at once
    write   fills one section, whole or by parts; any order, any process (each opens it itself)
    finish  writes padding and manifest, then the header, last: until then the file does not
            start with the magic, and no reader takes it for an archive

Nothing is renamed here: whoever publishes the file decides when and over what.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reallm_formats import canonical, v1
from reallm_formats.closing import Closing
from reallm_formats.errors import FormatError
from reallm_formats.header import encode_header
from reallm_formats.layout import Layout
from reallm_formats.manifest import Manifest, encode_manifest, manifest_of
from reallm_formats.sections import SectionEntry, check_spare
from reallm_formats.system import CLOEXEC, sync

CHUNK: Final = 1 << 22
"""Bytes that are hashed and written in one step."""

Buffer = bytes | bytearray | memoryview


class Writer(Closing):
    """An open file of a known layout; made by `create` or `open`."""

    def __init__(self, descriptor: int, layout: Layout) -> None:
        self._descriptor = descriptor
        self._layout = layout
        self._sections = layout.sections

    @classmethod
    def create(cls, path: str | os.PathLike[str], layout: Layout) -> Writer:
        """Make a new file and reserve its whole length on the disk.

        Raises:
            OSError: the file exists, its folder does not or is not writable, or the disk is
                full; then no file is left behind.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOEXEC, 0o666)
        try:
            _reserve(descriptor, layout.file_bytes)
        except BaseException:
            os.close(descriptor)
            Path(path).unlink()
            raise
        return cls(descriptor, layout)

    @classmethod
    def open(cls, path: str | os.PathLike[str], layout: Layout) -> Writer:
        """Open a file that `create` reserved for the same layout, in this process or another.

        Raises:
            OSError: it cannot be opened for writing.
            FormatError: it is not a plain file (F1) or has another length (H4).
        """
        descriptor = os.open(path, os.O_RDWR | CLOEXEC)
        facts = os.fstat(descriptor)
        if stat.S_ISREG(facts.st_mode) and facts.st_size == layout.file_bytes:
            return cls(descriptor, layout)
        os.close(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise FormatError("F1", "this is not a plain file", location=os.fspath(path))
        raise FormatError(
            "H4",
            f"the reserved file has {facts.st_size} bytes; the layout has {layout.file_bytes}",
            location=os.fspath(path),
        )

    def write(self, name: str, data: Buffer) -> bytes:
        """Fill a section and return its SHA-256 (32 bytes).

        Args:
            name: a section of the layout; another is a ValueError.
            data: exactly the section's bytes, contiguous.

        Raises:
            FormatError: `data` has another length (S7) or unused bits that are not zero (S11).
            OSError: the disk refuses.
        """
        return self.write_parts(name, (data,))

    def write_parts(self, name: str, parts: Iterable[Buffer]) -> bytes:
        """Fill a section by parts that follow each other, so that no caller need hold it whole.

        Args:
            name: as for `write`.
            parts: contiguous, of any lengths; together exactly the section's bytes. Each is let
                go before the next one is asked for.

        Returns:
            the SHA-256 of the section (32 bytes).

        Raises:
            FormatError: as `write` does; nothing is written outside the section, whose content
                is then of no use.
            OSError: the disk refuses.
        """
        section = self.begin(name)
        for part in parts:
            section.add(part)
            del part
        return section.finish()

    def begin(self, name: str) -> SectionWriter:
        """A section to be filled by parts as they come; several may be under way.

        Args:
            name: as for `write`.
        """
        return SectionWriter(self._descriptor, self._section(name))

    def digest(self, name: str) -> bytes:
        """SHA-256 of what the file holds in a section's range now: to check a resumed slot."""
        digest = hashlib.sha256()
        for part in self._parts(name):
            digest.update(part)
        return digest.digest()

    def read(self, name: str) -> bytes:
        """What the file holds in a section's range now."""
        return b"".join(self._parts(name))

    def flush(self) -> None:
        """Force what was written onto the disk."""
        sync(self._descriptor)

    def finish(self, document: Mapping[str, Any], digests: Mapping[str, bytes]) -> None:
        """Write padding, manifest and header, and force everything onto the disk.

        Args:
            document: the final document, of the same encoded length as the layout's.
            digests: SHA-256 of every section, by name.

        Raises:
            FormatError: no reader would accept the result: a digest is missing or of another
                length (S10), the manifest's length has changed (H5), or the document is wrong.
            OSError: the disk refuses.
        """
        manifest = self._final_manifest(document, digests)
        encoded = encode_manifest(manifest)
        if len(encoded) != self._layout.manifest_bytes:
            raise FormatError(
                "H5",
                f"the final manifest has {len(encoded)} bytes; "
                f"{self._layout.manifest_bytes} were laid out",
                location="manifest",
                note="all that depends on data must have a fixed width",
            )
        start = v1.HEADER_BYTES + len(encoded)
        _write_all(self._descriptor, memoryview(encoded), v1.HEADER_BYTES)
        for section in manifest.sections:
            padding = memoryview(bytes(section.offset - start))
            _write_all(self._descriptor, padding, start)
            start = section.end
        self.flush()
        header = encode_header(encoded, self._layout.file_bytes)
        _write_all(self._descriptor, memoryview(header), 0)
        self.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _parts(self, name: str) -> Iterator[bytes]:
        """A section's bytes, chunk by chunk; OSError if the file was truncated meanwhile."""
        section = self._section(name)
        start = section.offset
        while start < section.end:
            part = os.pread(self._descriptor, min(CHUNK, section.end - start), start)
            if not part:
                raise OSError(errno.EIO, f"the reserved file ends before byte {section.end}")
            yield part
            start += len(part)

    def _section(self, name: str) -> SectionEntry:
        if name not in self._sections:
            raise ValueError(f"the layout has no section {name!r}")
        return self._sections[name]

    def _final_manifest(
        self, document: Mapping[str, Any], digests: Mapping[str, bytes]
    ) -> Manifest:
        """The layout's manifest with digests and document filled in, checked as a reader does."""
        plain = self._layout.manifest.plain()
        for row in plain["sections"]:
            if row["name"] not in digests:
                message = "the section has no digest: it was not written"
                raise FormatError("S10", message, location=f"section {row['name']}")
            row["sha256"] = digests[row["name"]]
        plain["document"] = canonical.normal(document)
        return manifest_of(plain)


class SectionWriter:
    """A section that is filled by parts that follow each other; made by `Writer.begin`."""

    def __init__(self, descriptor: int, section: SectionEntry) -> None:
        self._descriptor = descriptor
        self._section = section
        self._digest = hashlib.sha256()
        self._done = 0

    def add(self, part: Buffer) -> None:
        """Write the next part.

        Raises:
            FormatError, OSError: as `Writer.write` does.
        """
        section, view = self._section, memoryview(part)
        view = view.cast("B") if view.nbytes else view
        end = self._done + view.nbytes
        if end > section.nbytes:
            raise _other_length(section, end)
        if view.nbytes and end == section.nbytes:
            check_spare(section, view)
        for start in range(0, view.nbytes, CHUNK):
            chunk = view[start : start + CHUNK]
            self._digest.update(chunk)
            _write_all(self._descriptor, chunk, section.offset + self._done + start)
        self._done = end

    def finish(self) -> bytes:
        """The SHA-256 of the section (32 bytes), once all its parts are written.

        Raises:
            FormatError: they were too few (S7).
        """
        if self._done < self._section.nbytes:
            raise _other_length(self._section, self._done)
        return self._digest.digest()


def _other_length(section: SectionEntry, given: int) -> FormatError:
    return FormatError(
        "S7",
        f"the section takes {section.nbytes} bytes and was given {given}",
        location=section.location,
    )


def _reserve(descriptor: int, size: int) -> None:
    """Set the file's length and reserve its disk space."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            # The file system cannot reserve; a full disk and all else is the caller's to know.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    zeros = memoryview(bytes(CHUNK))
    for start in range(0, size, CHUNK):
        _write_all(descriptor, zeros[: size - start], start)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write `data` at `offset`; one call of the system may write less than it is given."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written
