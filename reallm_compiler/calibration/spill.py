"""Hidden states at the borders of blocks, on disk: one file of float32 for each border.

A file is written beside its name, forced onto the disk and renamed, so there is a whole one or
none, also where a task is done twice at once. Its name says which run it belongs to.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from reallm_compiler.errors import CalibrateError
from reallm_compiler.runs.state import new_path, remove_state
from reallm_compiler.runs.training import StateFiles
from reallm_formats.system import sync


def hidden_bytes(shapes: Sequence[tuple[int, int]], width: int) -> int:
    """Bytes of the hidden states [b, t, width] of chunks [b, t]."""
    return sum(4 * rows * columns * width for rows, columns in shapes)


class Spill:
    """The files of one run.

    Args:
        states: names them, beside the unfinished output.
        shapes: (b, t) of each chunk of sequences.
        width: numbers d of a hidden state.
        prefix: of the files' names, where a run has several of these.
    """

    def __init__(
        self,
        states: StateFiles,
        shapes: Sequence[tuple[int, int]],
        width: int,
        prefix: str = "",
    ) -> None:
        self._states = states
        self._prefix = prefix
        self._shapes = [(rows, columns, width) for rows, columns in shapes]
        self._starts = [0]
        for rows, columns in shapes:
            self._starts.append(self._starts[-1] + 4 * rows * columns * width)

    @property
    def nbytes(self) -> int:
        """Length of each file."""
        return self._starts[-1]

    def has(self, name: str) -> bool:
        """Whether there is a whole file of this name."""
        path = self._path(name)
        return path.exists() and path.stat().st_size == self.nbytes

    def read(self, name: str, chunk: int) -> Tensor:
        """The hidden states [b, t, d] of a chunk.

        Raises:
            CalibrateError: the file is gone, or cannot be read.
        """
        start, end = self._starts[chunk : chunk + 2]
        data = bytearray(end - start)
        try:
            with self._path(name).open("rb") as file:
                file.seek(start)
                whole = file.readinto(data) == len(data)
        except OSError as error:
            raise self._refused(name, "read", error) from error
        if not whole:
            raise self._refused(name, "read", OSError(0, "it is too short"))
        return torch.frombuffer(data, dtype=torch.float32).reshape(self._shapes[chunk])

    def write(self, name: str, chunks: Iterable[Tensor]) -> None:
        """Store the hidden states of all chunks, in order, each as it is made.

        Raises:
            CalibrateError: the disk refuses.
        """
        path = self._path(name)
        fresh = new_path(path.with_name(f"{path.name}.{uuid.uuid4().hex}"))
        try:
            with fresh.open("wb") as file:
                for values in chunks:
                    file.write(values.detach().float().cpu().contiguous().numpy().data)
                file.flush()
                sync(file.fileno())
            os.replace(fresh, path)
        except OSError as error:
            raise self._refused(name, "written", error) from error

    def remove(self, name: str) -> None:
        """Remove a file that is needed no more."""
        remove_state(self._path(name))

    def _path(self, name: str) -> Path:
        return self._states.path(f"{self._states.run} {self._prefix}{name}")

    def _refused(self, name: str, verb: str, error: OSError) -> CalibrateError:
        return CalibrateError(
            f"hidden states cannot be {verb}: {error.strerror or error}",
            location=str(self._path(name)),
            hint="free disk space and run the same command again: finished blocks are kept",
        )
