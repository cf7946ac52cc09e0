"""torch's own threads for compiled kernels: `GOMP_parallel` of the OpenMP library that it brings.

To hand work to threads that wait for it takes some 4 us, and to Python's ten times that. The
library is found among those that are loaded already; where it is another one, or none, kernels run
their lines on Python's threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

from reallm_compiler.units import ceil_div

NAMES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@cache
def openmp() -> tuple[int, int, int] | None:
    """Addresses of the functions `NAMES` in torch's OpenMP library; None without it."""
    found = _loaded_libraries()
    for path in found:
        try:
            library = ctypes.CDLL(str(path))
            functions = [getattr(library, name) for name in NAMES]
        except (OSError, AttributeError):
            continue
        first, second, third = (
            int(ctypes.cast(one, ctypes.c_void_p).value or 0) for one in functions
        )
        if first and second and third and _works(first):
            return first, second, third
    return None


def _loaded_libraries() -> list[Path]:
    """GNU's OpenMP library beside torch's own libraries."""
    folder = Path(torch.__file__).parent
    places = (folder / "lib", folder.parent / "torch.libs")
    return [path for place in places if place.is_dir() for path in sorted(place.glob("libgomp*"))]


def _works(address: int) -> bool:
    """Whether a body that is handed over is run, by one thread."""
    seen: list[int] = []
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    body = body_type(lambda _: seen.append(1))
    parallel = ctypes.CFUNCTYPE(None, body_type, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)(
        address
    )
    parallel(body, None, 1, 0)
    return len(seen) == 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="reallm-kernel")


def run_shares(work: Callable[[int, int], object], lines: int, threads: int, step: int) -> None:
    """`work(first, last)` over all lines on several of Python's threads, this one among them.

    Args:
        work: gives up the interpreter's lock while it runs.
        lines: how many there are.
        threads: how many share them.
        step: shares are multiples of so many lines.
    """
    pieces = ceil_div(lines, step)
    ends = [min(pieces * part // threads * step, lines) for part in range(threads + 1)]
    later = [
        _pool().submit(work, first, last) for first, last in pairwise(ends[1:]) if first < last
    ]
    work(ends[0], ends[1])
    for one in later:
        one.result()
