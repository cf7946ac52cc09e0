"""Shards and their index: the headers of all shards, joined.

Of an index only the names of the shards count, as in transformers: all that the shards hold is the
checkpoint, and of a tensor that two of them hold that of the later shard is taken. Where index and
shards differ, a note says so. But an index that names a weight which no shard holds, although they
hold the same weight of other layers, is of an incomplete checkpoint, and that is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from reallm_compiler.checkpoint.headers import HEADER_LIMIT, read_header
from reallm_compiler.checkpoint.layers import layer_prefix
from reallm_compiler.checkpoint.paths import parse_json, read_small, resolve_inside
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import TensorSpec

_DIGITS = re.compile(r"\d+")

Shards = tuple[tuple[TensorSpec, ...], tuple[str, ...]]
"""The tensors of all shards, and notes on where the index differs from them."""


def read_shards(folder: Path, index: str) -> Shards:
    """The headers of all shards that an index names.

    Args:
        folder: the checkpoint's.
        index: name of the index in it.

    Raises:
        SourceError: the index or a shard is missing, broken or hostile.
    """
    weight_map = read_weight_map(folder, index)
    shards = sorted(set(weight_map.values()))
    targets = {shard: resolve_inside(folder, shard) for shard in shards}
    for shard in targets:
        if not shard.endswith(".safetensors"):
            raise SourceError(
                f"the index names {shard!r}, which is not a safetensors file", location=index
            )
    missing = [shard for shard, target in targets.items() if not os.path.exists(target)]
    if missing:
        many = f"{len(missing)} of {len(shards)} shards are missing"
        raise SourceError(
            f"{many}: {', '.join(missing)}",
            location=str(folder),
            hint="download them into the folder",
        )
    headers = [read_header(target, shard) for shard, target in targets.items()]
    return join_shards(weight_map, headers, index)


def join_shards(
    weight_map: Mapping[str, str], shards: Iterable[tuple[TensorSpec, ...]], index: str
) -> Shards:
    """Joins the tensors of shards.

    Args:
        weight_map: of the index, from tensors to shards.
        shards: the tensors of each, in the order of the shards' names.
        index: its name in messages.

    Raises:
        SourceError: a weight is missing (module docstring).
    """
    found: dict[str, TensorSpec] = {}
    twice: list[str] = []
    for spec in chain.from_iterable(shards):
        if spec.name in found:
            twice.append(spec.name)
        found[spec.name] = spec
    absent = sorted(weight_map.keys() - found.keys())
    _refuse_incomplete(absent, found, weight_map, index)
    extra = sorted(found.keys() - weight_map.keys())
    notes = (
        _named("tensors in two shards, of which the later shard's are used", twice),
        _named(f"tensors of the shards that {index} does not name", extra),
        _named(f"tensors that {index} names, but no shard holds", absent),
    )
    return tuple(found.values()), tuple(note for note in notes if note)


def _named(what: str, names: list[str]) -> str:
    shown = ", ".join(ascii(name)[:120] for name in names[:3])
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{what}: {shown}{more}" if names else ""


def _refuse_incomplete(
    absent: Iterable[str], found: Iterable[str], weight_map: Mapping[str, str], index: str
) -> None:
    """An index may be out of date, but a weight of a layer that is there may not be missing."""
    absent = list(absent)
    kinds = {_DIGITS.sub("*", name) for name in found} if absent else set()
    layers = {layer_prefix(name) for name in found} if absent else set()
    for name in absent:
        prefix = layer_prefix(name)
        if prefix in layers and prefix is not None and _DIGITS.sub("*", name) in kinds:
            raise SourceError(
                f"tensor {name!r} is in {weight_map[name]} by the index, but in no shard",
                location=index,
                note="other layers have this tensor: the checkpoint is incomplete",
                hint="download the index and all shards again",
            )


def read_weight_map(folder: Path, index: str) -> Mapping[str, str]:
    """The index of a folder: the shard of each tensor.

    Raises:
        SourceError: it cannot be read, or is no index.
    """
    data = read_small(resolve_inside(folder, index), index, HEADER_LIMIT)
    weight_map = parse_json(data, index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise SourceError("the index has no weight_map from tensors to shards", location=index)
    return weight_map
