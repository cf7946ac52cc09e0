"""How recipes, defaults and rules are merged: later wins, field by field.

- Two maps merge key by key.
- A stage whose `kind` changes is replaced whole: parameters of another kind must not survive.
- A `share` falls away where a later quantizer or autoencoder learns nothing that could be shared.
- Everything else, lists included, is replaced.

Each field of the result is the very node that set it, so its location is that of the last writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from reallm_compiler.recipe.nodes import MapNode, Node, ScalarNode, to_plain
from reallm_compiler.stages import SHARING, shares


def merge(base: Node, patch: Node) -> Node:
    """`base` with the fields of `patch` put over it; both stay as they are."""
    if not (isinstance(base, MapNode) and isinstance(patch, MapNode)):
        return patch
    return merge_maps(base, patch)


def merge_maps(base: MapNode, patch: MapNode) -> MapNode:
    """`merge` of two maps."""
    if _kind_changes(base, patch):
        return patch
    fields = dict(base.fields)
    for key, value in patch.fields.items():
        fields[key] = merge(fields[key], value) if key in fields else value
    _drop_share(fields, patch)
    return MapNode(
        fields=fields,
        location=patch.location,
        path=patch.path,
        key_locations={**base.key_locations, **patch.key_locations},
    )


def merge_all(layers: Sequence[MapNode]) -> MapNode:
    """Several maps, each put over those before it."""
    return reduce(merge_maps, layers)


def _kind_changes(base: MapNode, patch: MapNode) -> bool:
    if "kind" not in base.fields or "kind" not in patch.fields:
        return False
    return bool(to_plain(base.fields["kind"]) != to_plain(patch.fields["kind"]))


def _drop_share(fields: dict[str, Node], patch: MapNode) -> None:
    """Take away the `share` that `patch` inherits, where it leaves nothing to share."""
    changed = [patch.fields[stage] for stage in SHARING if stage in patch.fields]
    if not changed or "share" in patch.fields or "share" not in fields:
        return
    if to_plain(fields["share"]) is None:
        return
    stages = {stage: fields.get(stage) for stage in SHARING}
    kinds = {
        stage: to_plain(node.fields["kind"])
        for stage, node in stages.items()
        if isinstance(node, MapNode) and "kind" in node.fields
    }
    if not any(shares(stage, kind) for stage, kind in kinds.items()):
        fields["share"] = ScalarNode(value=None, location=changed[0].location, path=changed[0].path)
