"""Checks of a recipe's `kv_cache` section: those of all files, merged field by field."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from reallm_compiler.errors import Problem
from reallm_compiler.recipe.messages import Loc, problems_of
from reallm_compiler.recipe.nodes import MapNode, ScalarNode, find, to_plain
from reallm_compiler.recipe.patch import merge_maps
from reallm_compiler.recipe.vocabulary import keys_of, listed, nearest, owners, stages, suggestion
from reallm_compiler.stages import CachedKeys, CachedValues, KvCache, Stage

SECTION = "kv_cache"
"""The section's key in a recipe."""

PARTS: dict[str, type[Stage]] = {"keys": CachedKeys, "values": CachedValues}


def kv_cache_of(
    trees: Sequence[MapNode], *, complete: bool
) -> tuple[KvCache | None, list[Problem]]:
    """What the sections of some files say together, or what is wrong with it.

    Args:
        trees: recipe files, the most basic first.
        complete: whether all files that are extended are among them; what is missing is no problem
            otherwise.
    """
    merged: MapNode | None = None
    for tree in trees:
        node = tree.fields.get(SECTION)
        if isinstance(node, MapNode):
            merged = node if merged is None else merge_maps(merged, node)
        elif isinstance(node, ScalarNode) and node.value is None:
            merged = None
    if merged is None:
        return None, []
    try:
        return KvCache.model_validate(to_plain(merged)), []
    except ValidationError as error:
        found = problems_of(error, merged, _unknown)
        if not complete:
            found = [one for one in found if not one.message.endswith("is missing")]
        return None, found


def _unknown(loc: Loc, key: str, node: MapNode) -> tuple[str, str | None]:
    """Message and hint for a key that has no meaning at `loc`, counted from the section."""
    message = f"unknown key `{key}`"
    if not loc:
        valid = keys_of(KvCache)
        if any(key in keys_of(part) for part in PARTS.values()):
            return message, f"it belongs under {listed(PARTS)}"
    elif len(loc) == 1:
        valid = keys_of(PARTS[str(loc[0])])
        if key in keys_of(KvCache):
            return message, f"it belongs under `{SECTION}` itself"
    else:
        stage = str(loc[1])
        kind, _ = find(node, ("kind",))
        name = str(kind.value) if isinstance(kind, ScalarNode) else ""
        if name in stages()[stage]:
            message = f"`{key}` is not a parameter of `{name}`"
            if owning := owners(stage, key):
                return message, f"it belongs to the kind {listed(owning)}"
            valid = keys_of(stages()[stage][name])
        else:
            valid = sorted({k for model in stages()[stage].values() for k in keys_of(model)})
    near = nearest(key, valid)
    return message, f"did you mean `{near}`?" if near else suggestion(key, valid)
