"""In a worker of a Ray cluster: the first process that calls a function is harmed there, once.

The file that REALLM_FAULT names says where: `MODULE NAME HARM`, and is removed when it has struck.
`kill` ends the process, `stop` lets it stand still for ever, `memory` raises a MemoryError.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FIRST = "reallm_compiler.runs.ray_worker"


class _Finder:
    """Prepares the harm when a worker imports its first module of ours."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != FIRST:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _prepare(os.environ["REALLM_FAULT"])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _prepare(path: str) -> None:
    try:
        with open(path) as file:
            where, name, harm = file.read().split()
    except (FileNotFoundError, ValueError):
        return
    holder: Any = importlib.import_module(where)
    *outer, name = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    original = getattr(holder, name)

    def harmed(*args: Any, **named: Any) -> Any:
        try:
            os.unlink(path)  # one process alone can
        except FileNotFoundError:
            return original(*args, **named)
        if harm == "memory":
            raise MemoryError
        with open(f"{path}.{os.getpid()}", "w"):
            pass  # who stands still must be ended by the test
        os.kill(os.getpid(), signal.SIGKILL if harm == "kill" else signal.SIGSTOP)
        return original(*args, **named)

    setattr(holder, name, harmed)


if "REALLM_FAULT" in os.environ:
    import importlib.util

    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
