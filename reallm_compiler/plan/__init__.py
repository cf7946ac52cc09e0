"""The planner: recipe + inventory -> the exact place of every byte, without weights.

`reallm_compiler.plan` is both this room and the function that users call: importing any of its
files binds the package to that name, so the package itself is callable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reallm_compiler.plan.model import Plan
    from reallm_compiler.recipe import Recipe
    from reallm_compiler.sources import Inventory


class _Room(ModuleType):
    def __call__(
        self,
        recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
        *,
        model: str | os.PathLike[str] | Mapping[str, Any] | Inventory | None = None,
    ) -> Plan:
        """The plan of compiling a checkpoint by a recipe; see `plan.build.plan`."""
        from reallm_compiler.plan.build import plan

        return plan(recipe, model=model)


sys.modules[__name__].__class__ = _Room
