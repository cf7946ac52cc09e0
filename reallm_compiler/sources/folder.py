"""A checkpoint's folder: which files hold the weights, and what stands in their headers.

In this order:

1. `model.safetensors`: the weights in one file;
2. `model.safetensors.index.json`: the weights in shards; the index and the headers of the shards
   must say the same;
3. without a `config.json`, every `*.safetensors` file of the folder: matrices, not a model;
4. a `config.json` and no weights at all: shapes only (the caller builds them).

Other formats beside safetensors are ignored; alone they are refused with what to do. Pickles
(`.bin`, `.pt`, `.pth`) are never opened: reading one runs whatever code it holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.sources.headers import HEADER_LIMIT, header_specs, read_header
from reallm_compiler.sources.paths import list_files, read_small, resolve_inside
from reallm_compiler.sources.stated import check_words
from reallm_compiler.tensors import TensorSpec

MAIN = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
CONFIG_LIMIT = 16 * 2**20

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WEIGHT_PICKLES = ("pytorch_model", "model", "consolidated", "adapter_model", "flax_model")


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderFacts:
    """What a folder holds.

    Attributes:
        tensors: all tensors of all shards; None for a folder with a config and no weights.
        config: the model's config, or None.
        notes: remarks for the user.
    """

    tensors: tuple[TensorSpec, ...] | None
    config: dict[str, Any] | None
    notes: tuple[str, ...] = ()


def read_folder(folder: Path) -> FolderFacts:
    """Reads the headers of a folder, by the rules of this module.

    Raises:
        SourceError: the folder holds no readable checkpoint, or a broken or hostile one.
    """
    names = list_files(folder)
    config = read_config(folder / CONFIG, CONFIG, folder) if CONFIG in names else None
    shards = [name for name in names if name.endswith(".safetensors")]
    notes: tuple[str, ...] = ()
    if MAIN in names:
        if INDEX in names:
            notes = (f"{MAIN} and {INDEX} are both there: the first is used",)
        tensors = _join([(MAIN, _header(folder, MAIN))])
    elif INDEX in names:
        tensors = _indexed(folder)
    elif shards and config is None:
        if "adapter_config.json" in names:
            raise _adapter(folder)
        tensors = _join((name, _header(folder, name)) for name in shards)
    elif shards:
        raise _unindexed(folder, shards, names)
    else:
        refuse_formats(folder, names)
        if config is None:
            raise SourceError(
                "the folder holds no checkpoint",
                location=str(folder),
                note=f"looked for {MAIN}, {INDEX}, *.safetensors, {CONFIG}",
                hint="give the folder that holds config.json and the safetensors files",
            )
        return FolderFacts(tensors=None, config=config)
    return FolderFacts(tensors=tensors, config=config, notes=notes)


def read_config(path: Path, label: str, folder: Path | None = None) -> dict[str, Any]:
    """A config, which must hold a mapping; its words are words.

    Args:
        path: the file.
        label: its name in messages.
        folder: where given, the file must lie inside it.
    """
    if folder is not None:
        path = resolve_inside(folder, path.name)
    config = parse_json(read_small(path, label, CONFIG_LIMIT), label)
    check_words(config, label)
    return config


def parse_json(data: bytes, label: str) -> dict[str, Any]:
    """Bytes of a JSON file that must hold a mapping."""
    try:
        document = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise SourceError("the file is nested too deeply", location=label) from None
    except json.JSONDecodeError as error:
        raise SourceError(
            f"the file is not valid JSON: {error.msg.lower()}",
            location=f"{label}:{error.lineno}:{error.colno}",
        ) from error
    except ValueError as error:
        raise SourceError(f"the file is not valid JSON: {error}", location=label) from error
    if not isinstance(document, dict):
        raise SourceError("the file does not hold a JSON mapping", location=label)
    return document


def refuse_formats(folder: Path, names: Iterable[str]) -> None:
    """Refuses a folder whose only weights are of a kind that is not read."""
    names = list(names)
    gguf = [name for name in names if name.lower().endswith(".gguf")]
    if gguf:
        raise gguf_refused(str(folder / gguf[0]))
    for name in names:
        stem = name.split(".")[0].split("-")[0]
        if name.lower().endswith(PICKLES) and (
            stem in _WEIGHT_PICKLES or not name.startswith(("training_args", "optimizer"))
        ):
            raise pickle_refused(str(folder / name))


def gguf_refused(location: str) -> SourceError:
    """The error for a GGUF file."""
    return SourceError(
        "GGUF files are not read",
        location=location,
        note="most hold weights that are quantised already",
        hint="start from the safetensors checkpoint that it was made from",
    )


def pickle_refused(location: str) -> SourceError:
    """The error for a pickled checkpoint, with the way to convert it."""
    return SourceError(
        "pickled weights are not read",
        location=location,
        note="opening a pickle runs any code that was put into it",
        hint="if you trust it, convert it once: AutoModelForCausalLM.from_pretrained(FOLDER)"
        ".save_pretrained(NEW_FOLDER, safe_serialization=True), and the tokenizer likewise",
    )


def _adapter(folder: Path) -> SourceError:
    return SourceError(
        "the folder holds an adapter, not a model",
        location=str(folder),
        hint="merge it into its base model first (PEFT: merge_and_unload) and save that",
    )


def _unindexed(folder: Path, shards: list[str], names: list[str]) -> SourceError:
    if "adapter_config.json" in names:
        return _adapter(folder)
    several = len(shards) > 1
    return SourceError(
        f"the folder has a config, but neither {MAIN} nor {INDEX}",
        location=str(folder),
        note=f"found {', '.join(shards[:4])}{' ...' if len(shards) > 4 else ''}",
        hint=f"download {INDEX} as well" if several else f"rename {shards[0]} to {MAIN}",
    )


def _header(folder: Path, name: str) -> tuple[TensorSpec, ...]:
    return read_header(resolve_inside(folder, name), name)


def _join(shards: Iterable[tuple[str, tuple[TensorSpec, ...]]]) -> tuple[TensorSpec, ...]:
    """The tensors of several shards; a name that two of them use is refused."""
    found: dict[str, TensorSpec] = {}
    for name, specs in shards:
        for spec in specs:
            if spec.name in found:
                raise SourceError(
                    f"tensor {spec.name!r} is in {found[spec.name].shard} and in {name}",
                    location=name,
                )
            found[spec.name] = spec
    return tuple(found.values())


def _indexed(folder: Path) -> tuple[TensorSpec, ...]:
    """All tensors of a sharded checkpoint, index and headers compared."""
    weight_map = _weight_map(folder)
    shards = sorted(set(weight_map.values()))
    targets = {shard: resolve_inside(folder, shard) for shard in shards}
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise SourceError(f"the index names {shard!r}, no safetensors file", location=INDEX)
    missing = [shard for shard, target in targets.items() if not os.path.exists(target)]
    if missing:
        many = f"{len(missing)} of {len(shards)} shards are missing"
        raise SourceError(
            f"{many}: {', '.join(missing)}",
            location=str(folder),
            hint="download them into the folder",
        )
    tensors = _join((shard, read_header(target, shard)) for shard, target in targets.items())
    _check_index(weight_map, tensors)
    return tensors


def holds_weights(folder: Path) -> bool:
    """Whether all shards of a model are in a folder.

    Raises:
        SourceError: its index cannot be read.
    """
    if (folder / MAIN).exists():
        return True
    if not (folder / INDEX).exists():
        return False
    return all((folder / shard).exists() for shard in set(_weight_map(folder).values()))


def read_headers(folder: Path, headers: Mapping[str, dict[str, Any]]) -> FolderFacts:
    """What a folder holds whose weights are elsewhere, told by their headers.

    Args:
        folder: with the config, and the index if there are several shards.
        headers: of each shard, as the file has it.

    Raises:
        SourceError: as for `read_folder`.
    """
    names = list_files(folder)
    config = read_config(folder / CONFIG, CONFIG, folder) if CONFIG in names else None
    tensors = _join((name, header_specs(dict(header), name)) for name, header in headers.items())
    if INDEX in names and MAIN not in headers:
        _check_index(_weight_map(folder), tensors)
    return FolderFacts(tensors=tensors, config=config)


def _weight_map(folder: Path) -> Mapping[str, str]:
    """The index: the shard of each tensor."""
    data = read_small(resolve_inside(folder, INDEX), INDEX, HEADER_LIMIT)
    weight_map = parse_json(data, INDEX).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise SourceError("the index has no weight_map from tensors to shards", location=INDEX)
    return weight_map


def _check_index(weight_map: Mapping[str, str], tensors: Iterable[TensorSpec]) -> None:
    """Refuse shards that hold other tensors than the index says."""
    found = {spec.name: spec.shard for spec in tensors}
    for name, shard in found.items():
        if weight_map.get(name) != shard:
            raise _contradiction(name, weight_map.get(name), shard)
    absent = weight_map.keys() - found.keys()
    if absent:
        first = min(absent)
        raise _contradiction(first, weight_map[first], None)


def _contradiction(tensor: str, stated: str | None, found: str | None) -> SourceError:
    says = f"is in {stated}" if stated else "is nowhere"
    shows = f"is in {found}" if found else "is not there"
    return SourceError(
        f"tensor {tensor!r} {says} by the index, but by the shards it {shows}",
        location=INDEX,
        note="the index and the shards are of different versions of the checkpoint",
        hint="download the index and all shards again",
    )
