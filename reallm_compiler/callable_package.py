"""Packages that are called like the function that users know under the package's name.

Importing any file of `reallm_compiler.finetune` binds the package to `reallm_compiler.finetune`.
Where that is also the name of a public function, the package has to be callable itself, so that
both meanings of the name hold, whatever was imported before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Let a loaded package be called like `function`, with its signature."""
    module = sys.modules[package]
    kind = type("CallablePackage", (ModuleType,), {"__call__": staticmethod(function)})
    vars(module)["__signature__"] = inspect.signature(function)
    module.__class__ = kind
