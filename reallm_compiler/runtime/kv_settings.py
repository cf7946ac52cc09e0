"""Where the settings of a cache of keys and values come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.recipe import load_recipe
from reallm_compiler.recipe.check_cache import SECTION
from reallm_compiler.stages import KvCache

KvSource = str | os.PathLike[str] | Mapping[str, Any] | KvCache
"""A shipped recipe, a recipe file, an archive, the section of a recipe as plain data, or `none`."""

NONE = "none"
"""No quantized cache, whatever a recipe says."""


def kv_settings(source: KvSource | None, *, own: Mapping[str, Any] | None = None) -> KvCache | None:
    """The settings that a source names.

    Args:
        source: where they are; None for `own`.
        own: the section of the model's own recipe; None without one.

    Returns:
        None if keys and values are kept as they are.

    Raises:
        RecipeError: the recipe is wrong, or has no such section.
        FormatError: the archive is damaged.
    """
    if isinstance(source, KvCache):
        return source
    if source == NONE:
        return None
    if source is None:
        return None if own is None else _of_section(own)
    if isinstance(source, Mapping):
        return _of_section(source)
    name = os.fspath(source)
    if name.endswith(".reallm"):
        with open_archive(name) as archive:
            section = archive.plan.recipe.get(SECTION)
            found = None if section is None else _of_section(section)
    else:
        found = load_recipe(name).kv_cache
    if found is None:
        problem = Problem(
            location=name,
            path=SECTION,
            message="this recipe says nothing of keys and values",
            hint="kv-8bit, kv-4bit, kv-3bit and kv-2bit are shipped",
        )
        raise RecipeError([problem])
    return found


def _of_section(section: Mapping[str, Any]) -> KvCache | None:
    return load_recipe({"reallm": 1, SECTION: dict(section)}, name=SECTION).kv_cache
