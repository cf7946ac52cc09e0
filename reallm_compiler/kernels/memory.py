"""Memory of kernels at work: one piece for each thread, which all products of the thread use."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from reallm_compiler.units import ceil_div

ALIGNMENT = 64
"""Bytes at a multiple of which each part begins."""


class _Own(threading.local):
    memory: Tensor = torch.empty(0, dtype=torch.uint8)
    first: int = 0


_own = _Own()


def own_memory(size: int) -> int:
    """The address of so many bytes that are the calling thread's until its next call."""
    if _own.memory.numel() < size + ALIGNMENT:
        _own.memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8)
        _own.first = _own.memory.data_ptr()
        _own.first += -_own.first % ALIGNMENT
    return _own.first


def own_tensors(*wanted: tuple[int, int, torch.dtype]) -> list[Tensor]:
    """Matrices (rows, columns, type) in the calling thread's memory, until its next call."""
    sizes = [aligned(rows * columns * dtype.itemsize) for rows, columns, dtype in wanted]
    place = own_memory(sum(sizes)) - _own.memory.data_ptr()
    found = []
    for (rows, columns, dtype), size in zip(wanted, sizes, strict=True):
        part = _own.memory[place : place + rows * columns * dtype.itemsize]
        found.append(part.view(dtype).view(rows, columns))
        place += size
    return found


def aligned(size: int) -> int:
    """A number of bytes after which another part can begin."""
    return ceil_div(size, ALIGNMENT) * ALIGNMENT
