"""Memory that runs out in the middle of a task, as an error with a location and a hint.

The preflight's estimate is on the safe side, but other programs take memory too. torch has no
class of its own for it on the CPU: it is recognised by its message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reallm_compiler.errors import CompileError

_MESSAGES = ("can't allocate memory", "out of memory")
"""Parts of the messages of torch, on the CPU and on CUDA."""


class MemoryShortageError(CompileError):
    """Memory ran out in the middle of a task."""


@contextmanager
def oom_to_error(location: str) -> Iterator[None]:
    """Turn running out of memory into an error at `location`; all else passes.

    Raises:
        MemoryShortageError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(part in str(error) for part in _MESSAGES):
            raise
        raise MemoryShortageError(
            "memory ran out",
            location=location,
            note="finished matrices are kept",
            hint="free memory, or use fewer `--workers`, and run the same command again",
        ) from error
