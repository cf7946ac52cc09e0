"""Memory that runs out in the middle of a unit, as an error with a place and a way out.

The preflight's estimate is on the safe side, but other programs take memory too. torch has no
class of its own for it on the CPU: it is known by its words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reallm_compiler.errors import CompileError

_WORDS = ("can't allocate memory", "out of memory")
"""How torch says it, on the CPU and on CUDA."""


@contextmanager
def shortage_told(place: str) -> Iterator[None]:
    """Turn running out of memory into a `CompileError` at `place`; all else passes.

    Raises:
        CompileError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in _WORDS):
            raise
        raise CompileError(
            "memory ran out",
            location=place,
            note="finished matrices are kept",
            hint="free memory, or use fewer `--workers`, and run the same command again",
        ) from error
