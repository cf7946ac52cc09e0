"""Shapes without weights: a bare config, or a document of shapes.

A config says what a model is, not what its tensors are called. `transformers` knows, so the
model is built on its `meta` device, where a tensor has a shape and no memory (`architecture.py`),
and the names are turned back into those that a checkpoint of this model uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from reallm_compiler.checkpoint.architecture import building, meta_model
from reallm_compiler.checkpoint.headers import check_name, check_shape
from reallm_compiler.checkpoint.scales import config_dtype
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import TensorSpec

DEFAULT_DTYPE = "f16"
_TORCH_DTYPES = {
    "bool": "bool",
    "uint8": "u8",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
}


def tensors_of_config(
    config: Mapping[str, Any], label: str
) -> tuple[list[TensorSpec], dict[str, str], str]:
    """Names and shapes of the tensors that a checkpoint of this config has.

    Args:
        config: the content of a `config.json`.
        label: its name in messages.

    Returns:
        The tensors; the ties, alias to kept name; a remark on the element type.

    Raises:
        SourceError: transformers is missing, or cannot build a model from the config.
    """
    stated = config_dtype(config)
    dtype = stated or DEFAULT_DTYPE
    model: Any = meta_model(config, label)
    ties: dict[str, str] = dict(model.all_tied_weights_keys)
    with building(label):
        names = _checkpoint_names(model, ties)
    tensors = [
        TensorSpec(
            name=name,
            dtype=_TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."), dtype),
            shape=tuple(tensor.shape),
        )
        for name, tensor in names.items()
    ]
    note = (
        f"element type {dtype} as the config says"
        if stated
        else f"the config states no dtype: {dtype} is assumed for all weights"
    )
    return tensors, {alias: kept for alias, kept in ties.items() if kept in names}, note


def _checkpoint_names(
    model: Any,  # noqa: ANN401 - a class of transformers, which has no types
    ties: dict[str, str],
) -> dict[str, Any]:
    """The tensors as `save_pretrained` would write them; `ties` is renamed in place.

    Since version 5, models of transformers hold some tensors under other names, or joined, than
    their checkpoints do (the experts of Mixtral), and convert on loading and saving.
    """
    state: dict[str, Any] = model.state_dict()
    ignored = set(model._keys_to_ignore_on_save or ())
    own = {name: t for name, t in state.items() if name not in ties and name not in ignored}
    try:
        loading: Any = importlib.import_module("transformers.core_model_loading")
        revert = loading.revert_weight_conversion
    except (ImportError, AttributeError):
        return own
    for alias, kept in list(ties.items()):
        if alias in state and kept in own:
            renamed = [*revert(model, {alias: state[alias]})]
            target = [*revert(model, {kept: own[kept]})]
            if len(renamed) == len(target) == 1:
                del ties[alias]
                ties[renamed[0]] = target[0]
    return dict(revert(model, own))


def tensors_of_shapes(document: Mapping[str, Any], label: str) -> list[TensorSpec]:
    """The tensors of a document `{shapes: {NAME: [p, q]}, dtype: float16}`.

    Raises:
        SourceError: all that is wrong with the first entry that is.
    """
    unknown = [key for key in document if key not in ("shapes", "dtype")]
    if unknown:
        raise SourceError(
            f"a document of shapes has no key {unknown[0]!r}",
            location=label,
            hint="its keys are shapes and dtype",
        )
    dtype = config_dtype(document) if "dtype" in document else DEFAULT_DTYPE
    if dtype is None:
        raise SourceError(
            f"dtype is {document['dtype']!r}",
            location=f"{label}: dtype",
            hint="write float16, bfloat16 or float32",
        )
    shapes = document["shapes"]
    if not isinstance(shapes, Mapping) or not shapes:
        raise SourceError(
            "shapes is not a mapping of names to shapes",
            location=f"{label}: shapes",
            hint="write {shapes: {NAME: [p, q]}}",
        )
    return list(_shape_entries(shapes, dtype, label))


def _shape_entries(shapes: Mapping[Any, Any], dtype: str, label: str) -> Iterator[TensorSpec]:
    for name, value in shapes.items():
        extents = check_shape(value)
        if not isinstance(name, str) or extents is None:
            raise SourceError(
                f"{value!r} is not a shape",
                location=f"{label}: shapes.{name}",
                hint="write a list of integers, outputs before inputs, such as [4096, 11008]",
            )
        check_name(name, label)
        yield TensorSpec(name=name, dtype=dtype, shape=extents)
