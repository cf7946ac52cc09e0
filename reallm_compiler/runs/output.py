"""The three paths of a run, and how one becomes the archive.

OUT.partial is reserved at full length and filled; OUT.journal lists what is in it; at the end the
partial file is renamed to OUT in one step. An archive of that name is untouched until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reallm_compiler.errors import CompileError, FormatError, ResumeError
from reallm_compiler.publish import check_file, clear_partial, journal_of, partial_of, put
from reallm_compiler.runs.journal import Journal
from reallm_compiler.runs.tasks import TaskGraph, TaskResult, section_digests
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

    @contextmanager
    def open_journal(self) -> Iterator[Journal]:
        """The locked journal; one that still holds nothing when the run fails is removed.

        Raises:
            OutputError: another process writes this output.
        """
        with Journal.open(self.journal) as journal:
            try:
                yield journal
            except BaseException:
                if not journal.records:
                    journal.remove()
                raise

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
                hint="free disk space, or choose another output folder",
            ) from error

    def publish(self) -> None:
        """Rename the finished partial file to the archive, durably."""
        put(self.partial, self.path)

    def is_finished(self, done: Mapping[str, TaskResult]) -> bool:
        """Whether the archive is the finished result of the run with these tasks.

        So it is when a run was killed between the rename and the end of its journal.
        """
        if self.partial.exists() or not self.path.exists() or not done:
            return False
        wanted = section_digests(done.values())
        try:
            with Archive.open(self.path) as archive:
                found = {entry.name: entry.sha256 for entry in archive.manifest.sections}
        except FormatError:
            return False
        return found == wanted


def intact_tasks(
    partial: Path, layout: Layout, graph: TaskGraph, journalled: Mapping[str, TaskResult]
) -> dict[str, TaskResult]:
    """The journalled tasks whose sections are in the partial file as the journal says.

    Raises:
        ResumeError: the partial file has another length.
    """
    if partial.stat().st_size != layout.file_bytes:
        raise ResumeError(
            "the unfinished file has another length than the plan",
            location=str(partial),
            hint="start over with `--resume never`",
        )
    intact: dict[str, TaskResult] = {}
    with Writer.open(partial, layout) as writer:
        for task in graph.tasks:
            result = journalled.get(task.key)
            if result is None or set(result.sections) != set(task.sections):
                continue
            if all(writer.digest(name).hex() == hexes for name, hexes in result.sections.items()):
                intact[task.key] = result
    return intact
