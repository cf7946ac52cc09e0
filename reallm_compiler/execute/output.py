"""The three paths of a compile, and how one becomes the archive.

OUT.partial is reserved at full length and filled; OUT.journal tells what is in it; at the end the
partial file is renamed to OUT in one step. An archive of that name is untouched until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_compiler.errors import CompileError, FormatError
from reallm_compiler.publish import check_file, clear_partial, journal_of, partial_of, put
from reallm_formats import Archive, Layout, Writer


@dataclass(frozen=True, slots=True)
class Output:
    """Where an archive is written."""

    path: Path

    @property
    def partial(self) -> Path:
        """The reserved file that is being filled."""
        return partial_of(self.path)

    @property
    def journal(self) -> Path:
        """What is finished in it."""
        return journal_of(self.path)

    def check(self, *, force: bool) -> None:
        """The path can be written.

        Raises:
            OutputError: the folder is missing or read-only, or the file is there without `force`.
        """
        check_file(self.path, force=force)

    def reserve(self, layout: Layout) -> None:
        """Create the partial file at its full length.

        Raises:
            CompileError: the disk is full; nothing is left behind.
        """
        try:
            clear_partial(self.path)
            Writer.create(self.partial, layout).close()
        except OSError as error:
            raise CompileError(
                f"cannot reserve {layout.file_bytes:,} bytes: {error.strerror}",
                location=str(self.partial),
                hint="make room, or choose another output folder",
            ) from error

    def publish(self) -> None:
        """Rename the finished partial file to the archive, durably."""
        put(self.partial, self.path)

    def holds_finished(self, records: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the archive is the finished result of the run with these journal records.

        So it is when a run was killed between the rename and the end of its journal.
        """
        if self.partial.exists() or not self.path.exists() or not records:
            return False
        wanted = {
            name: digest
            for record in records.values()
            for name, digest in record["sections"].items()
        }
        try:
            with Archive.open(self.path) as archive:
                found = {entry.name: entry.sha256.hex() for entry in archive.manifest.sections}
        except FormatError:
            return False
        return found == wanted
