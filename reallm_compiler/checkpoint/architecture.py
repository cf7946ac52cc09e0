"""The transformers class and config of a model, from the content of its `config.json` alone.

All ways into transformers begin here: the plan of a bare config, and whoever loads a folder or an
archive. Nothing in a config may run code or reach the network (see `untrusted.py`): a model type
or a class that transformers itself does not have is refused, and so is a backbone that would have
to be looked up by its name.

Torch and transformers are imported when a function is called: this is the only module of the
lower layers that does so.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reallm_compiler.checkpoint.stated import check_counts, check_model_types, check_sizes
from reallm_compiler.checkpoint.untrusted import offline, without_code
from reallm_compiler.errors import SourceError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Neither packing nor the version changes a shape.
_LEFT_OUT = frozenset({"quantization_config", "compression_config", "transformers_version"})
_DTYPES = frozenset({"dtype", "torch_dtype"})

_WITHOUT_ARCHITECTURES = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForCausalLM",
    "AutoModel",
)
"""Where the class is looked up, in this order, when the config names none: one that generates
from all its inputs, one that generates from text, the bare model."""

# What transformers raises for a config that makes no sense: there is no common base.
_REFUSALS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ImportError,
    ArithmeticError,
    AssertionError,
    OSError,
    MemoryError,
)


@contextmanager
def building(label: str) -> Iterator[None]:
    """Inside, transformers makes something of a config: offline, quiet, its errors translated.

    Args:
        label: the config's name in messages.

    Raises:
        SourceError: transformers gave up on the config, or would have to look something up.
    """
    log: Any = importlib.import_module("transformers.utils.logging")
    loudness = log.get_verbosity()
    log.set_verbosity_error()  # its remarks on generation settings say nothing about shapes
    try:
        with offline():
            yield
    except _refusals() as error:
        if type(error).__name__ == "OfflineModeIsEnabled":
            raise SourceError(
                "the config names a backbone that transformers would look up on the Hub",
                location=label,
                note="a config never reaches the network",
                hint="state the backbone's own config (backbone_config) instead of its name",
            ) from error
        raise SourceError(
            f"transformers cannot build a model from this config: {_first_line(error)}",
            location=label,
            hint="compare it with the config.json that the model was published with",
        ) from error
    finally:
        log.set_verbosity(loudness)


def _refusals() -> tuple[type[Exception], ...]:
    """What building a model from a senseless config raises, with huggingface_hub's own class."""
    try:
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        return _REFUSALS
    strict = getattr(errors, "StrictDataclassError", None)
    return _REFUSALS if strict is None else (*_REFUSALS, strict)


def _first_line(error: BaseException) -> str:
    """The first line of an exception, with the next line where the first announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if first.endswith(":") and len(lines) > 1:
        first = f"{first} {lines[1]}"
    return first.rstrip(".")[:300]


def transformers_config(content: Mapping[str, Any], label: str) -> PretrainedConfig:
    """The config object of a `config.json`, made offline and without code of a repository.

    Where `architectures` names a class of a part (`Gemma3ForCausalLM` of the pair `gemma3`), it
    is the config of that part, as `from_pretrained` of the class would read it.

    Args:
        content: the content of the file.
        label: its name in messages.

    Raises:
        SourceError: transformers is missing, does not know the model type, or finds no sense in
            the config; the config does not state its sizes, or states impossible ones; it names
            something that would have to be looked up.
    """
    check_model_types(content, label)
    transformers = _transformers(label)
    model_type = content.get("model_type")
    if not model_type:
        raise SourceError(
            "the config names no model_type",
            location=label,
            hint='a config.json of transformers has a line such as "model_type": "llama"',
        )
    if model_type not in transformers.CONFIG_MAPPING:
        raise SourceError(
            f"the model type {model_type!r} is not known to transformers "
            f"{transformers.__version__}",
            location=label,
            note="program code from a repository is never run",
            hint="a folder with the weights can be compiled all the same: its headers need no code",
        )
    check_counts(content, label)
    with building(label):
        known = transformers.CONFIG_MAPPING[model_type]
        built: PretrainedConfig = known.from_dict(_plain(without_code(content)))
        stated = built.to_dict()
    check_counts(stated, label)  # once more: what the config leaves out has defaults
    check_sizes(built, content, label)
    return _part_that_is_named(transformers, built, content)


def model_class(
    config: PretrainedConfig, content: Mapping[str, Any], label: str
) -> type[PreTrainedModel]:
    """The class that the checkpoint was saved from.

    The first of `architectures`, which transformers may spell with other capitals
    (`MPTForCausalLM`). A config without `architectures` is taken for the first of: the class
    that generates from all its inputs (encoder and decoder, image and text), the causal language
    model, the bare model.

    Args:
        config: as `transformers_config` made it.
        content: the content of the file.
        label: its name in messages.

    Raises:
        SourceError: transformers has no such class, or it takes another config.
    """
    transformers = _transformers(label)
    named = content.get("architectures")
    if not named:
        return _usual_class(transformers, config, label)
    first = named[0] if isinstance(named, list | tuple) else named
    if not isinstance(first, str):
        raise SourceError(
            "architectures is not a list of class names",
            location=f"{label}: architectures",
            hint='a config.json of transformers has a line such as "architectures": '
            '["LlamaForCausalLM"]',
        )
    with building(label):
        found = _class_named(transformers, first)
    if found is None:
        raise SourceError(
            f"architectures names {first!r}, which transformers {transformers.__version__} "
            "does not have",
            location=f"{label}: architectures",
            note="program code from a repository is never run",
            hint="a folder with the weights can be compiled all the same: its headers need no code",
        )
    takes = found.config_class
    if takes is None or not isinstance(config, takes):
        raise SourceError(
            f"architectures names {found.__name__}, which takes a {getattr(takes, '__name__', '?')}"
            f", but the model_type {config.model_type!r} makes a {type(config).__name__}",
            location=f"{label}: architectures",
            hint="compare it with the config.json that the model was published with",
        )
    return found


def meta_model(content: Mapping[str, Any], label: str) -> PreTrainedModel:
    """The model of a config on torch's `meta` device: every tensor has a shape and no memory.

    Args:
        content: the content of a `config.json`.
        label: its name in messages.

    Raises:
        SourceError: as `transformers_config` and `model_class`, or the model cannot be built.
    """
    config = transformers_config(content, label)
    made = model_class(config, content, label)
    torch: Any = importlib.import_module("torch")
    config.dtype = None  # a type that a config states changes no shape
    with building(label), torch.device("meta"):
        maker: Any = made
        model: PreTrainedModel = maker._from_config(config)
    return model


def _part_that_is_named(
    transformers: Any,  # noqa: ANN401 - transformers has no types
    config: PretrainedConfig,
    content: Mapping[str, Any],
) -> PretrainedConfig:
    """The config of a pair, or of the part of it that the class of `architectures` takes."""
    named = content.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    found = _class_named(transformers, first) if isinstance(first, str) else None
    takes = getattr(found, "config_class", None)
    if takes is None or isinstance(config, takes):
        return config
    parts = [getattr(config, key, None) for key in type(config).sub_configs]
    return next((part for part in parts if isinstance(part, takes)), config)


def _usual_class(
    transformers: Any,  # noqa: ANN401
    config: PretrainedConfig,
    label: str,
) -> type[PreTrainedModel]:
    for name in _WITHOUT_ARCHITECTURES:
        mapping = getattr(transformers, name)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            first: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
            return first
    raise SourceError(
        f"the config names no architectures, and {config.model_type!r} has no usual class",
        location=label,
        hint='add a line such as "architectures": ["BertForTokenClassification"]',
    )


def _class_named(transformers: Any, name: str) -> type[PreTrainedModel] | None:  # noqa: ANN401
    """A model class of transformers, its capitals aside."""
    exact = getattr(transformers, name, None)
    if exact is None:  # a listing of all of the library's names takes a moment
        folded = name.lower()
        near = [name for name in dir(transformers) if name.lower() == folded]
        exact = getattr(transformers, near[0], None) if near else None
    base = transformers.PreTrainedModel
    return exact if isinstance(exact, type) and issubclass(exact, base) else None


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config and the configs inside it without the keys that are left out; a new copy."""
    torch: Any = importlib.import_module("torch")
    plain: dict[str, Any] = {}
    for key, value in content.items():
        if key in _LEFT_OUT:
            continue
        if key in _DTYPES and not _is_dtype(torch, value):
            continue
        plain[key] = _copied(value)
    return plain


def _copied(value: object) -> object:
    if isinstance(value, Mapping):
        # As transformers writes what JSON has no word for: {"__float__": "Infinity"}.
        tag = value.get("__float__") if len(value) == 1 else None
        return float(tag) if tag in ("Infinity", "-Infinity", "NaN") else _plain(value)
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _is_dtype(torch: Any, value: object) -> bool:  # noqa: ANN401
    return isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)


def _transformers(label: str) -> Any:  # noqa: ANN401
    try:
        importlib.import_module("torch")
        return importlib.import_module("transformers")
    except ImportError as error:
        raise SourceError(
            "a bare config needs torch and transformers",
            location=label,
            hint="pip install transformers torch, or give a folder with the weights",
        ) from error
