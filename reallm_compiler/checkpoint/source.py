"""From whatever a user may call a model to its inventory.

That is a folder, a file of matrices, a bare config, a document of shapes, an id of the Hub, or a
folder in an object store. Only headers are read, so a checkpoint of any size opens in a moment and
without torch; a bare config is the one exception (see `config.py`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from reallm_compiler.checkpoint import hub
from reallm_compiler.checkpoint.carried import embedded_files
from reallm_compiler.checkpoint.config import tensors_of_config, tensors_of_shapes
from reallm_compiler.checkpoint.embed import code_note, config_bytes, plain_config
from reallm_compiler.checkpoint.folder import (
    CONFIG,
    CONFIG_LIMIT,
    INDEX,
    PICKLES,
    gguf_refused,
    pickle_refused,
    read_folder,
    read_headers,
)
from reallm_compiler.checkpoint.headers import read_header
from reallm_compiler.checkpoint.inventory import Inventory, Kind
from reallm_compiler.checkpoint.layers import prediction_layers
from reallm_compiler.checkpoint.linear import matrices, natural_key
from reallm_compiler.checkpoint.packed import refuse_packed
from reallm_compiler.checkpoint.paths import missing, near_miss, parse_json, read_small, unreadable
from reallm_compiler.checkpoint.quantization import (
    refuse_stated,
    statements,
    states_storage,
    without_storage,
)
from reallm_compiler.checkpoint.remarks import remarks
from reallm_compiler.checkpoint.scales import attach_scales
from reallm_compiler.checkpoint.stated import check_model_types
from reallm_compiler.checkpoint.store import is_url, mirrored
from reallm_compiler.checkpoint.ties import find_ties
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import TensorSpec


def open_source(
    model: str | os.PathLike[str] | Mapping[str, Any], *, weights: bool = True
) -> Inventory:
    """Opens a checkpoint, whatever form it has; a local path always wins over a Hub id.

    Args:
        model: a folder with safetensors; one safetensors file (its matrices alone); a
            `config.json` or a folder with nothing more; a YAML or JSON file
            `{shapes: {NAME: [p, q]}}`; the content of either as a mapping, or as JSON text that
            starts with `{`; a folder in an object store, such as `s3://BUCKET/PATH`; or a Hub id
            `ORG/NAME`, optionally with `@REVISION`.
        weights: whether weights will be read: without, those of a Hub id are not downloaded, and
            the headers of those that the local cache lacks are read on the Hub.

    Raises:
        SourceError: there is no such thing, or it is broken, hostile, or of a refused format.
    """
    if isinstance(model, Mapping):
        return _from_document(dict(model), "", (), "the given mapping")
    text = os.fspath(model)
    if not text or "\0" in text:
        raise SourceError("the model's path is empty or invalid")
    if text.lstrip().startswith("{"):
        label = "the given text"
        return _from_document(parse_json(text.encode(), label), "", (), label)
    if is_url(text):
        return _from_store(text)
    path = Path(os.path.expanduser(text))
    try:
        # Unlike os.path.isdir, stat distinguishes "no permission" from "not there".
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise SourceError("this symbolic link is broken", location=text) from error
        if isinstance(model, str) and hub.is_hub_id(text) and not _is_a_slip(path):
            return _from_hub(text, path, weights=weights)
        raise missing(path) from error
    except OSError as error:
        raise unreadable(error, text) from error
    return _from_folder(path) if is_folder else _from_file(path)


def _from_hub(text: str, path: Path, *, weights: bool) -> Inventory:
    hint = near_miss(path) if "/" not in text else None
    if weights:
        folder, headers = hub.fetch(text, hint=hint), None
    else:
        folder, headers = hub.describe(text, hint=hint)
    if headers is not None:
        found = read_headers(folder, headers)
        files, notes = embedded_files(folder)
        note = f"the weights of {text} were not downloaded: sizes are those of their headers"
        notes = (*found.notes, *code_note(found.config), *notes, note)
        return _build(str(folder), "headers", found.tensors or (), found.config, files, notes)
    inventory = _from_folder(folder)
    if inventory.complete:
        return inventory
    note = f"no safetensors of {text} can be downloaded: only its config is used"
    return replace(inventory, notes=(*inventory.notes, note))


def _from_store(url: str) -> Inventory:
    with mirrored(url) as folder:
        return replace(_from_folder(folder), path=url)


def _is_a_slip(path: Path) -> bool:
    """Whether a missing path that could be a Hub id is rather a path with a wrong last name."""
    return len(path.parts) > 1 and Path(path.parts[0]).is_dir()


def _from_folder(folder: Path) -> Inventory:
    found = read_folder(folder)
    files, left = embedded_files(folder)
    notes = (*found.notes, *code_note(found.config), *left)
    if found.tensors is None:
        label = str(folder / CONFIG)
        return _from_document(found.config or {}, str(folder), files, label, notes)
    kind: Kind = "matrices" if found.config is None else "model"
    return _build(str(folder), kind, found.tensors, found.config, files, notes)


def _from_file(path: Path) -> Inventory:
    label, suffix = str(path), path.suffix.lower()
    if suffix == ".safetensors":
        specs = read_header(path, path.name)
        return _build(str(path.parent), "matrices", specs, None, (), ())
    if suffix == ".gguf":
        raise gguf_refused(label)
    if suffix in PICKLES:
        raise pickle_refused(label)
    if suffix == ".reallm":
        raise SourceError(
            "this is an archive, not a checkpoint",
            location=label,
            hint="`reallm reconstruct` turns it into a checkpoint's folder",
        )
    if path.name == INDEX:
        raise SourceError(
            "this is the index of a sharded checkpoint",
            location=label,
            hint=f"give its folder, {str(path.parent)!r}",
        )
    if suffix not in (".json", ".yaml", ".yml"):
        raise SourceError(
            "this file is not a checkpoint",
            location=label,
            hint="give a folder, a .safetensors file, a config.json, or a document of shapes",
        )
    data = read_small(path, label, CONFIG_LIMIT)
    document = parse_json(data, label) if suffix == ".json" else _parse_yaml(data, label)
    files = ((CONFIG, data),) if suffix == ".json" and "shapes" not in document else ()
    return _from_document(document, label, files, label, code_note(document))


def _parse_yaml(data: bytes, label: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        location = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise SourceError(f"the file is not valid YAML: {problem}", location=location) from error
    if not isinstance(document, dict):
        raise SourceError(
            "the file does not hold a mapping",
            location=label,
            hint="write {shapes: {NAME: [p, q]}}",
        )
    return document


def _from_document(
    document: dict[str, Any],
    path: str,
    files: tuple[tuple[str, bytes], ...],
    label: str,
    notes: tuple[str, ...] = (),
) -> Inventory:
    """Shapes alone: from a document of shapes, or from a config."""
    if "shapes" in document:
        tensors = tensors_of_shapes(document, label)
        return _build(path, "shapes", tensors, None, (), notes)
    if not {"model_type", "architectures"} & document.keys():
        raise SourceError(
            "this is neither a config nor a document of shapes",
            location=label,
            hint="a config.json has model_type; a document of shapes is {shapes: {NAME: [p, q]}}",
        )
    check_model_types(document, label)
    refuse_stated(document)
    config = without_storage(document)
    tensors, ties, note = tensors_of_config(config, label)
    content = plain_config(files, document) if config != document else files
    content = content or ((CONFIG, config_bytes(config)),)
    return _build(path, "config", tensors, config, content, (*notes, note), ties)


def _build(
    path: str,
    kind: Kind,
    specs: tuple[TensorSpec, ...] | list[TensorSpec],
    config: dict[str, Any] | None,
    files: tuple[tuple[str, bytes], ...],
    notes: tuple[str, ...],
    ties: dict[str, str] | None = None,
) -> Inventory:
    refuse_stated(config)
    plain, scaled = attach_scales(specs, config)
    refuse_packed(plain)
    if config is not None and states_storage(config):
        if not scaled and next(statements(config), None) is not None:
            notes = (*notes, "config.json says that the weights are fp8, and none is: left out")
        files = plain_config(files, config)
        config = without_storage(config)
    if scaled:
        notes = (*notes, f"{scaled} fp8 weights are read with their scales multiplied in")
    if ties is None:
        ties = find_ties({spec.name for spec in plain}, config)
    duplicates = tuple(spec for spec in plain if spec.name in ties)
    if duplicates:
        names = ", ".join(f"{spec.name} = {ties[spec.name]}" for spec in duplicates)
        notes = (*notes, f"stored twice although tied, planned once: {names}")
    tensors = sorted(
        (spec for spec in plain if spec.name not in ties), key=lambda spec: natural_key(spec.name)
    )
    if not tensors:
        raise SourceError("the checkpoint holds no tensors", location=path or None)
    prediction = prediction_layers((spec.name for spec in tensors), config)
    facts = tuple(matrices(tensors, config, prediction))
    return Inventory(
        path=path,
        kind=kind,
        tensors=tuple(tensors),
        config=config,
        files=files,
        ties=ties,
        duplicates=duplicates,
        prediction=prediction,
        notes=(*notes, *remarks(tensors, facts, config)),
        facts=facts,
    )
