"""Shapes without weights: a bare config, or a document of shapes.

A config says what a model is, not what its tensors are called. `transformers` knows, so the
model is built on its `meta` device, where a tensor has a shape and no memory, and the names are
turned back into those that a checkpoint of this model uses. This is the only place of the lower
floors that imports transformers (and with it torch), and only when it is called.

Code from a repository is never run: a config of a model type that transformers itself does not
know is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.sources.headers import check_name, check_shape
from reallm_compiler.sources.scales import config_dtype
from reallm_compiler.sources.stated import check_counts
from reallm_compiler.sources.untrusted import offline, without_code
from reallm_compiler.tensors import TensorSpec

DEFAULT_DTYPE = "f16"
# Neither packing nor the type of the numbers changes a shape.
_LEFT_OUT = ("quantization_config", "transformers_version", "dtype", "torch_dtype")
_TORCH_DTYPES = {
    "bool": "bool",
    "uint8": "u8",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
}
# What transformers raises for a config that makes no sense: there is no common base.
_REFUSALS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    ImportError,
    ArithmeticError,
    AssertionError,
)


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
    if not isinstance(config.get("model_type"), str):
        raise SourceError(
            "the config names no model_type",
            location=label,
            hint='a config.json of transformers has a line such as "model_type": "llama"',
        )
    check_counts(config, label)
    stated = config_dtype(config)
    dtype = stated or DEFAULT_DTYPE
    try:
        shapes, ties = _meta_shapes(config, label)
    except _refusals() as error:
        raise SourceError(
            f"transformers cannot build a model from this config: {_first_line(error)}",
            location=label,
            hint="compare it with the config.json that the model was published with",
        ) from error
    tensors = [
        TensorSpec(name=name, dtype=_TORCH_DTYPES.get(word, dtype), shape=shape)
        for name, (word, shape) in shapes.items()
        if name not in ties
    ]
    note = (
        f"element type {dtype} as the config says"
        if stated
        else f"the config states no dtype: {dtype} is assumed for all weights"
    )
    return tensors, ties, note


def _refusals() -> tuple[type[Exception], ...]:
    """What building a model from a senseless config raises, with huggingface_hub's own class."""
    try:
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        return _REFUSALS
    strict = getattr(errors, "StrictDataclassError", None)
    return _REFUSALS if strict is None else (*_REFUSALS, strict)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


def _meta_shapes(
    config: Mapping[str, Any], label: str
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """(torch's dtype, shape) by checkpoint name, and the ties, from a model without memory."""
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise SourceError(
            "a bare config needs torch and transformers",
            location=label,
            hint="pip install transformers torch, or give a folder with the weights",
        ) from error
    model_type = config["model_type"]
    known = transformers.CONFIG_MAPPING
    if model_type not in known:
        raise SourceError(
            f"the model type {model_type!r} is not known to transformers "
            f"{transformers.__version__}",
            location=label,
            note="program code from a repository is never run",
            hint="give a folder with the weights: its headers need no code",
        )
    plain = {key: value for key, value in without_code(config).items() if key not in _LEFT_OUT}
    with offline():
        built = known[model_type].from_dict(plain)
    check_counts(built.to_dict(), label)  # once more: what the config leaves out has defaults
    causal = type(built) in transformers.AutoModelForCausalLM._model_mapping
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    log = transformers.utils.logging
    loudness = log.get_verbosity()
    log.set_verbosity_error()  # its remarks on generation settings say nothing about shapes
    try:
        with offline(), torch.device("meta"):
            model = auto.from_config(built, trust_remote_code=False)
    finally:
        log.set_verbosity(loudness)
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    state = model.state_dict()
    names = _checkpoint_names(model, state, ties)
    shapes = {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in names.items()
    }
    return shapes, {alias: kept for alias, kept in ties.items() if kept in shapes}


def _checkpoint_names(
    model: Any,  # noqa: ANN401 - a class of transformers, which has no types
    state: Mapping[str, Any],
    ties: dict[str, str],
) -> dict[str, Any]:
    """The tensors as `save_pretrained` would write them; `ties` is renamed in place.

    Since version 5, models of transformers hold some tensors under other names, or joined, than
    their checkpoints do (the experts of Mixtral), and convert on loading and saving.
    """
    own = {name: tensor for name, tensor in state.items() if name not in ties}
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
            "shapes is no mapping of names to extents",
            location=f"{label}: shapes",
            hint="write {shapes: {NAME: [p, q]}}",
        )
    return list(_shape_entries(shapes, dtype, label))


def _shape_entries(shapes: Mapping[Any, Any], dtype: str, label: str) -> Iterator[TensorSpec]:
    for name, value in shapes.items():
        extents = check_shape(value)
        if not isinstance(name, str) or extents is None:
            raise SourceError(
                f"{value!r} is no shape",
                location=f"{label}: shapes.{name}",
                hint="write a list of whole numbers, outputs before inputs, such as [4096, 11008]",
            )
        check_name(name, label)
        yield TensorSpec(name=name, dtype=dtype, shape=extents)
