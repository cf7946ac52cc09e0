"""Python's collector of reference cycles, paused while a plan is made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """No collection meanwhile; also as a decorator.

    The plan of a large model is millions of small objects that all stay. The collector would look
    through them again and again, a quarter of the time, and find nothing.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
