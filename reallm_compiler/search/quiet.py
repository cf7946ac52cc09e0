"""Silence of a library that prints from C: some versions of HiGHS leave a line on stdout."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Whatever C code prints on the process's stdout meanwhile is lost, and stdout is for data."""
    try:
        saved = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    sys.stdout.flush()
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still holds back
        os.dup2(saved, 1)
        os.close(saved)
