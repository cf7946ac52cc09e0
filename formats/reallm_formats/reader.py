"""Reading an archive: the whole structure first, then only what is asked for.

`Archive.open` reads the header and the manifest, checks their digest and every rule on them, and
maps the file. No byte of a section is touched before `read`, which checks the section's digest
the first time, or `verify`, which checks everything. Opened with `verify="later"`, `read` gives
the bytes out at once and a thread checks them; damage is raised by the next call that reads, by
`check`, or by `close`.

A file must not be shortened in place while it is open: the system stops a process that touches a
mapped page which is gone. Writers replace an old file by renaming the new one.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from reallm_formats import v1
from reallm_formats.closing import Closing
from reallm_formats.damage import HINT, Damage, LaterChecks, damage_of
from reallm_formats.errors import FormatError
from reallm_formats.header import Header, check_digest, parse_header
from reallm_formats.kinds.adapter import AdapterDocument, parse_adapter
from reallm_formats.kinds.decoder import DecoderDocument, parse_decoder
from reallm_formats.kinds.model import ModelDocument, parse_model
from reallm_formats.kinds.statistics import StatisticsDocument, parse_statistics
from reallm_formats.layout import Block, Layout
from reallm_formats.manifest import Manifest, parse_manifest
from reallm_formats.sections import SectionEntry
from reallm_formats.system import CLOEXEC, NONBLOCK

Verify = Literal["now", "later"]
"""When a section's digest is checked: before its bytes are given out, or in the background."""


class Archive(Closing):
    """An open archive whose structure was found right.

    Views that `read` gave out stay valid after `close`; the file is unmapped when the last of
    them is gone. Damage that happens to the file while it is open is not seen twice: a section
    is checked once.

    Opened with `private=True`, the views may be written to: what is written stays in this process,
    page by page, and pages that are only read are shared with all that map the file. Digests are
    those of the file's own bytes.
    """

    def __init__(self, data: memoryview, name: str = "archive", *, verify: Verify = "now") -> None:
        """Check the structure of a whole file in memory (a map, or bytes).

        Args:
            data: all bytes of the file.
            name: what errors call it.
            verify: when digests of sections are checked.

        Raises:
            FormatError: the broken rule and its location.
        """
        if verify not in ("now", "later"):
            raise ValueError(f"`verify` is `now` or `later`, not {verify!r}")
        self._name = name
        self._data = data
        self._private = memoryview(b"")
        self._maps: list[mmap.mmap] = []
        self._checked: set[str] = set()
        self._later = LaterChecks() if verify == "later" else None
        self._told = False
        try:
            self.header: Header = parse_header(bytes(data[: v1.HEADER_BYTES]), len(data))
            self.manifest: Manifest = self._parse(self.header)
        except FormatError as error:
            raise error.inside(name) from None
        self.sections: Mapping[str, SectionEntry] = MappingProxyType(
            {section.name: section for section in self.manifest.sections}
        )

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: Verify = "now", private: bool = False
    ) -> Archive:
        """Map a file and check its structure.

        Args:
            path: the file.
            verify: when digests of sections are checked: `now`, before `read` gives out their
                bytes, or `later`, in the background.
            private: give out bytes that may be written to, for this process alone.

        Raises:
            FormatError: it cannot be read (F1), or a rule is broken.
        """
        name = os.fsdecode(path)
        maps: list[mmap.mmap] = []
        try:
            descriptor = os.open(path, os.O_RDONLY | CLOEXEC | NONBLOCK)
        except (OSError, ValueError) as error:
            raise _unreadable(error, name) from None
        try:
            facts = os.fstat(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                hint = "give the .reallm file itself"
                raise FormatError("F1", "this is a folder, not a file", location=name, hint=hint)
            if not stat.S_ISREG(facts.st_mode):
                raise FormatError("F1", "this is not a plain file", location=name)
            if not facts.st_size:
                raise FormatError("F2", "the file is empty", location=name, hint=HINT)
            try:
                maps.append(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
                if private:
                    maps.append(_map_private(descriptor))
            except (OSError, ValueError) as error:
                raise _unreadable(error, name) from None
        finally:
            os.close(descriptor)
        view = memoryview(maps[0])
        try:
            archive = cls(view, name, verify=verify)
        except (FormatError, ValueError):
            view.release()
            for mapped in maps:
                mapped.close()
            raise
        archive._maps = maps
        if private:
            archive._private = memoryview(maps[1])
        return archive

    @property
    def name(self) -> str:
        """What errors call the file: its path."""
        return self._name

    @property
    def kind(self) -> str:
        """What the archive is: `model`, `adapter`, `decoder` or `statistics`."""
        return self.manifest.kind

    @property
    def document(self) -> Mapping[str, Any]:
        """The document, by kind, as plain data."""
        return self.manifest.document

    @property
    def model(self) -> ModelDocument:
        """The document of an archive of kind `model`; of another kind a FormatError (M3)."""
        if self.kind != "model":
            message = f"this is an archive of kind `{self.kind}`, not a model"
            raise FormatError("M3", message, location=self._name)
        newer = self.header.minor > v1.MINOR
        return parse_model(self.document, self.manifest.rows, newer=newer)

    @property
    def adapter(self) -> AdapterDocument:
        """The document of an archive of kind `adapter`; of another kind a FormatError (M3)."""
        if self.kind != "adapter":
            message = f"this is an archive of kind `{self.kind}`, not an adapter"
            raise FormatError("M3", message, location=self._name)
        newer = self.header.minor > v1.MINOR
        return parse_adapter(self.document, self.manifest.rows, newer=newer)

    @property
    def decoder(self) -> DecoderDocument:
        """The document of an archive of kind `decoder`; of another kind a FormatError (M3)."""
        if self.kind != "decoder":
            message = f"this is an archive of kind `{self.kind}`, not a decoder"
            raise FormatError("M3", message, location=self._name)
        newer = self.header.minor > v1.MINOR
        return parse_decoder(self.document, self.manifest.rows, newer=newer)

    @property
    def statistics(self) -> StatisticsDocument:
        """The document of an archive of kind `statistics`; of another kind a FormatError (M3)."""
        if self.kind != "statistics":
            message = f"this is an archive of kind `{self.kind}`, not statistics"
            raise FormatError("M3", message, location=self._name)
        newer = self.header.minor > v1.MINOR
        return parse_statistics(self.document, self.manifest.rows, newer=newer)

    @property
    def layout(self) -> Layout:
        """Where everything lies, as the planner lays it out."""
        stored = sum(section.nbytes for section in self.manifest.sections)
        own = v1.HEADER_BYTES + self.header.manifest_bytes
        return Layout(
            kind=self.kind,
            features=self.manifest.features,
            document=self.manifest.document,
            blocks=(Block("", self.manifest.rows),),
            manifest_bytes=self.header.manifest_bytes,
            section_bytes=stored,
            padding_bytes=self.header.file_bytes - own - stored,
            file_bytes=self.header.file_bytes,
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of header and manifest, which names every byte of the archive."""
        return self.header.digest

    @property
    def file_bytes(self) -> int:
        """Length of the file."""
        return self.header.file_bytes

    def read(self, name: str) -> memoryview:
        """A section's bytes without a copy; KeyError if there is no such section.

        They are read-only unless the archive was opened with `private=True`.

        Raises:
            FormatError: the section is damaged (S9, S11); or, with `verify="later"`, one that was
                read before.
        """
        section = self.sections[name]
        view = self._view(section)
        self._raise_found()
        if name not in self._checked:
            if self._later is not None:
                self._later.add(section, view)
            else:
                damage = damage_of(section, view)
                if damage:
                    raise damage.error(self._name)
            self._checked.add(name)
        return self._private[section.offset : section.end] if self._private else view

    @property
    def checking(self) -> bool:
        """With `verify="later"`: whether sections that were given out are still to be checked.

        Raises:
            FormatError: one of them is damaged.
        """
        self._raise_found()
        return self._later is not None and not self._later.idle

    def check(self) -> None:
        """Wait until all sections that were given out are checked.

        Raises:
            FormatError: one of them is damaged.
        """
        if self._later is not None:
            self._later.finish()
            self._raise_found()

    def verify(self, progress: Callable[[int], None] | None = None) -> list[Damage]:
        """Check every byte that `open` has not: all sections and all padding.

        Args:
            progress: called with the number of bytes checked since the last call.

        Returns:
            What is damaged, in the order of the file; empty if nothing is.
        """
        found: list[Damage] = []
        start = v1.HEADER_BYTES + self.header.manifest_bytes
        for section in self.manifest.sections:
            padding = bytes(self._data[start : section.offset])
            if any(padding):
                offset = start + next(i for i, byte in enumerate(padding) if byte)
                found.append(
                    Damage(
                        rule="S12",
                        location=f"padding before section {section.name}, byte {offset}",
                        message="a byte between sections is not zero",
                    )
                )
            damage = damage_of(section, self._view(section), progress)
            if damage:
                found.append(damage)
            else:
                self._checked.add(section.name)
            start = section.end
        return found

    def close(self) -> None:
        """Let go of the file; a second call does nothing.

        Raises:
            FormatError: with `verify="later"`, a section is damaged and was not reported yet.
        """
        if self._later is not None:
            self._later.finish()
        self._data = self._private = memoryview(b"")
        maps, self._maps = self._maps, []
        for mapped in maps:
            # Views may still be in use; the map goes with the last of them.
            with contextlib.suppress(BufferError):
                mapped.close()
        if not self._told:
            self._raise_found()

    def _raise_found(self) -> None:
        """Raise what was found in sections that were given out unchecked."""
        found = self._later.found if self._later is not None else ()
        if found:
            self._told = True
            note = 'bytes of it were given out before, as `verify="later"` asks'
            if found[1:]:
                note += f"; {len(found) - 1} more sections are damaged"
            raise found[0].error(self._name, note)

    def _parse(self, header: Header) -> Manifest:
        start = v1.HEADER_BYTES
        encoded = bytes(self._data[start : start + header.manifest_bytes])
        check_digest(header, bytes(self._data[:start]), encoded)
        manifest = parse_manifest(encoded, minor=header.minor)
        last = manifest.sections[-1] if manifest.sections else None
        end = last.end if last else start + len(encoded)
        if end != header.file_bytes:
            raise FormatError(
                "S8",
                f"{'the last section' if last else 'the manifest'} ends at byte {end} "
                f"and the file at byte {header.file_bytes}",
                location=last.location if last else f"manifest, byte {end}",
            )
        return manifest

    def _view(self, section: SectionEntry) -> memoryview:
        if not self._data:
            raise ValueError("the archive is closed")
        return self._data[section.offset : section.end].toreadonly()


def _map_private(descriptor: int) -> mmap.mmap:
    """A map whose pages are the file's until they are written to.

    Most of them never are: where it can be said, no memory is reserved for them.
    """
    flags = getattr(mmap, "MAP_NORESERVE", None)
    if flags is None:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(descriptor, 0, flags=flags | mmap.MAP_PRIVATE, prot=protection)


def _unreadable(error: OSError | ValueError, name: str) -> FormatError:
    if isinstance(error, FileNotFoundError):
        return FormatError("F1", "there is no such file", location=name)
    if isinstance(error, PermissionError):
        return FormatError("F1", "the file may not be read", location=name, hint="check its rights")
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FormatError("F1", f"the file cannot be read: {why}", location=name)
