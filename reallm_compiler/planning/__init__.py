"""The planner: recipe + inventory -> the exact place of every byte, without weights.

The package is called like `plan.build.plan`: see `callable_package.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reallm_compiler.callable_package import make_callable

if TYPE_CHECKING:
    from reallm_compiler.checkpoint import Inventory
    from reallm_compiler.planning.model import Plan
    from reallm_compiler.recipe import Recipe


def _plan(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    model: str | os.PathLike[str] | Mapping[str, Any] | Inventory | None = None,
) -> Plan:
    from reallm_compiler.planning.build import plan

    return plan(recipe, model=model)


make_callable(__name__, _plan)
