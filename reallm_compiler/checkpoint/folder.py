"""A checkpoint's folder: which files hold the weights, and what stands in their headers.

In this order:

1. the file that the config names as `transformers_weights`, a safetensors file or an index;
2. `model.safetensors`: the weights in one file;
3. `model.safetensors.index.json`: the weights in shards;
4. without a `config.json`, every `*.safetensors` file of the folder: matrices, not a model;
5. a `config.json` and no weights at all: shapes only (the caller builds them).

Other formats beside safetensors are ignored; alone they are refused with what to do. Pickles
(`.bin`, `.pt`, `.pth`) are never opened: reading one runs whatever code it holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint.headers import header_specs, read_header
from reallm_compiler.checkpoint.paths import list_files, parse_json, read_small, resolve_inside
from reallm_compiler.checkpoint.quantization import WEIGHTS_FILE
from reallm_compiler.checkpoint.shards import join_shards, read_shards, read_weight_map
from reallm_compiler.checkpoint.stated import check_model_types
from reallm_compiler.errors import SourceError
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
    main, index = weight_files(config)
    if main and _is_there(folder, main):
        if index in names:
            notes = (f"{MAIN} and {INDEX} are both there: the first is used",)
        tensors: tuple[TensorSpec, ...] = _header(folder, main)
    elif index and _is_there(folder, index):
        tensors, notes = read_shards(folder, index)
    elif config is not None and config.get(WEIGHTS_FILE) is not None:
        raise SourceError(
            f"the config names the weights {main or index!r}, which is not there",
            location=f"{folder / CONFIG}: {WEIGHTS_FILE}",
            hint=f"put the file into the folder, or take {WEIGHTS_FILE} out of the config",
        )
    elif shards and config is None:
        if "adapter_config.json" in names:
            raise _adapter(folder)
        tensors = _join_files((name, _header(folder, name)) for name in shards)
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


def weight_files(config: Mapping[str, Any] | None) -> tuple[str, str]:
    """The file of the weights, and the index of their shards; one is empty if it cannot be.

    Raises:
        SourceError: the config names a file that is neither.
    """
    named = (config or {}).get(WEIGHTS_FILE)
    if named is None:
        return MAIN, INDEX
    if isinstance(named, str) and named.endswith(".safetensors"):
        return named, ""
    if isinstance(named, str) and named.endswith(".safetensors.index.json"):
        return "", named
    raise SourceError(
        f"{WEIGHTS_FILE} is {ascii(named)[:80]}, which is neither a safetensors file nor an index",
        location=f"{CONFIG}: {WEIGHTS_FILE}",
        hint="remove the key from the config, or name a *.safetensors file of the folder",
    )


def _is_there(folder: Path, name: str) -> bool:
    """Whether a file of the checkpoint exists; a link that leads nowhere does."""
    resolve_inside(folder, name)
    return os.path.lexists(folder / name)


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
    check_model_types(config, label)
    return config


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
        note="most hold weights that are quantized already",
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


def _join_files(files: Iterable[tuple[str, tuple[TensorSpec, ...]]]) -> tuple[TensorSpec, ...]:
    """The tensors of files that no index joins; a name that two of them use is refused."""
    found: dict[str, TensorSpec] = {}
    for name, specs in files:
        for spec in specs:
            if spec.name in found:
                raise SourceError(
                    f"tensor {spec.name!r} is in {found[spec.name].shard} and in {name}",
                    location=name,
                    hint="remove one of the two files from the folder",
                )
            found[spec.name] = spec
    return tuple(found.values())


def holds_weights(folder: Path) -> bool:
    """Whether all shards of a model are in a folder.

    Raises:
        SourceError: its config or its index cannot be read.
    """
    names = list_files(folder)
    config = read_config(folder / CONFIG, CONFIG, folder) if CONFIG in names else None
    main, index = weight_files(config)
    if main and (folder / main).exists():
        return True
    if not index or not (folder / index).exists():
        return False
    return all((folder / shard).exists() for shard in set(read_weight_map(folder, index).values()))


def read_headers(folder: Path, headers: Mapping[str, dict[str, Any]]) -> FolderFacts:
    """What a folder holds whose weights are elsewhere, recognised by their headers.

    Args:
        folder: with the config, and the index if there are several shards.
        headers: of each shard, as the file has it.

    Raises:
        SourceError: as for `read_folder`.
    """
    names = list_files(folder)
    config = read_config(folder / CONFIG, CONFIG, folder) if CONFIG in names else None
    main, index = weight_files(config)
    shards = [header_specs(dict(header), name) for name, header in sorted(headers.items())]
    indexed = main not in headers and index in names
    weight_map = (
        read_weight_map(folder, index) if indexed else {s.name: s.shard for s in chain(*shards)}
    )
    tensors, notes = join_shards(weight_map, shards, index)
    return FolderFacts(tensors=tensors, config=config, notes=notes)
