"""The three paths of a compile, and how one becomes the archive.

OUT.partial is reserved at full length and filled; OUT.journal tells what is in it; at the end the
partial file is renamed to OUT in one step. An archive of that name is untouched until then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_compiler.errors import CompileError, FormatError, OutputError, ResumeError
from reallm_compiler.execute.units import Unit
from reallm_formats import Archive, Layout, Writer


@dataclass(frozen=True, slots=True)
class Output:
    """Where an archive is written."""

    path: Path

    @property
    def partial(self) -> Path:
        """The reserved file that is being filled."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def journal(self) -> Path:
        """What is finished in it."""
        return self.path.with_name(self.path.name + ".journal")

    def check(self, *, force: bool) -> None:
        """The path can be written.

        Raises:
            OutputError: the folder is missing or read-only, or the file is there without `force`.
        """
        folder = self.path.parent
        if not folder.is_dir():
            raise OutputError(
                "the output folder does not exist",
                location=str(folder),
                hint=f"create it: `mkdir -p {folder}`",
            )
        if self.path.is_dir():
            raise OutputError("the output is a folder", location=str(self.path))
        if not os.access(folder, os.W_OK):
            raise OutputError("the output folder is read-only", location=str(folder))
        if self.path.exists() and not force:
            raise OutputError(
                "the output exists already",
                location=str(self.path),
                hint="choose another name with `-o`, or overwrite it with `--force`",
            )

    def reserve(self, layout: Layout) -> None:
        """Create the partial file at its full length.

        Raises:
            CompileError: the disk is full; nothing is left behind.
        """
        try:
            self.partial.unlink(missing_ok=True)
            Writer.create(self.partial, layout).close()
        except OSError as error:
            raise CompileError(
                f"cannot reserve {layout.file_bytes:,} bytes: {error.strerror}",
                location=str(self.partial),
                hint="make room, or choose another output folder",
            ) from error

    def publish(self) -> None:
        """Rename the finished partial file to the archive, durably."""
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)

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


def sync_folder(folder: Path) -> None:
    """Make a rename or a removal in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def intact_units(
    partial: Path, layout: Layout, units: list[Unit], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The journalled units whose sections are in the partial file as the journal says.

    Raises:
        ResumeError: the partial file has another length.
    """
    if partial.stat().st_size != layout.file_bytes:
        raise ResumeError(
            "the unfinished file has another length than the plan",
            location=str(partial),
            hint="start over with `--resume never`",
        )
    good: dict[str, Mapping[str, Any]] = {}
    writer = Writer.open(partial, layout)
    try:
        for unit in units:
            record = records.get(unit.key)
            if record is None or set(record["sections"]) != set(unit.sections):
                continue
            if all(
                writer.digest(name).hex() == digest for name, digest in record["sections"].items()
            ):
                good[unit.key] = record
    finally:
        writer.close()
    return good
