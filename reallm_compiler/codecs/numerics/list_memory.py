"""What a program of the list search is compiled for, and how it lays out its memory."""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.codecs.numerics.list_search import DECIDED, LANES
from reallm_compiler.storage.trellis import WINDOW


@dataclass(frozen=True, slots=True)
class Shape:
    """What a program is compiled for.

    Attributes:
        state_bits: bits of the state.
        paths: paths that are kept.
        widths: the widths in use, ascending.
        feedback: errors are fed back.
    """

    state_bits: int
    paths: int
    widths: tuple[int, ...]
    feedback: bool

    @property
    def stride(self) -> int:
        """Elements from one array of paths to the next."""
        return (self.paths // LANES + 2) * LANES


def row_bytes(shape: Shape, columns: int) -> int:
    """Bytes of memory that the search of a row needs, a multiple of 64."""
    return RowMemory(shape, columns).size


class _Memory:
    """Offsets in bytes of arrays that follow each other, each at a multiple of 64.

    Attributes:
        size: bytes of all.
    """

    size: int = 0

    def _take(self, size: int) -> int:
        offset = self.size
        self.size += (size + 63) // 64 * 64
        return offset


class RowMemory(_Memory):
    """Offsets in bytes within the memory of one row."""

    def __init__(self, shape: Shape, columns: int) -> None:
        paths = shape.stride
        window = WINDOW if shape.feedback else 0
        self.count = self._take(64)
        self.cost = self._take(2 * paths * 4)
        self.state = self._take(2 * paths * 4)
        self.error = self._take(2 * paths * window * 4)
        self.parent = self._take(WINDOW * paths * 2)
        self.code = self._take(WINDOW * paths)
        self.best = self._take(DECIDED * 4)
        # Last, since its size depends on the columns: what decided errors add to the targets.
        self.decided = self._take((columns + LANES) * 4)


def scratch_bytes(shape: Shape) -> int:
    """Bytes of memory that rows use in turn, zero before the first."""
    return SharedMemory(shape).size


class SharedMemory(_Memory):
    """Offsets in bytes within the memory that rows use in turn."""

    def __init__(self, shape: Shape) -> None:
        candidates = shape.paths << shape.widths[-1]
        self.clock = self._take(64)
        self.cost = self._take((candidates + LANES) * 4)
        self.ancestor = self._take(shape.stride * 4)
        self.stamp = self._take(4 << shape.state_bits)
        self.slot = self._take(4 << shape.state_bits)
