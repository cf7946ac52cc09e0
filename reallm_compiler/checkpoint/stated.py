"""What a config states, checked before anything is done with it.

A config is untrusted input. Its strings are looked up in tables, so they must be strings; and
`transformers` builds a layer and an expert for each that the config counts, so the counts must be
such that this ends, and fits in memory. The bounds are above what the models of today have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from reallm_compiler.checkpoint.linear import EXPERT_LIMIT
from reallm_compiler.errors import SourceError

LAYER_LIMIT = 2000
STACK_LIMIT = 2**17
"""Most experts of all layers together; the largest models of today have about 85,000."""
COUNT_LIMIT = 2**20
"""Most of anything else that a config counts with `num_`: labels, heads, positions."""

_LAYERS = frozenset({"layers", "layer", "blocks", "depth", "depths"})
_INNER = ("decoder", "encoder")
_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size", "hidden_sizes", "depths", "embed_dim")
"""Width, depth and vocabulary, as transformers calls them in all its classes (`attribute_map`)."""


def check_model_types(config: Mapping[str, Any], label: str) -> None:
    """Refuses a config, or one inside it, whose `model_type` is not a string.

    Args:
        config: the content of a `config.json`.
        label: its name in messages.

    Raises:
        SourceError: with the location of the key.
    """
    parts = {"": config}
    for key, value in config.items():
        if isinstance(value, Mapping) and (str(key).endswith("config") or key in _INNER):
            parts[f"{key}."] = value
    for path, part in parts.items():
        model_type = part.get("model_type")
        if model_type is not None and not isinstance(model_type, str):
            raise SourceError(
                f"model_type is {_short(model_type)}, not a string",
                location=f"{label}: {path}model_type",
                hint='a config.json of transformers has a line such as "model_type": "llama"',
            )


def check_counts(config: Mapping[str, Any], label: str) -> None:
    """Refuses numbers of layers and experts for which building the model would never end.

    Raises:
        SourceError: with the location of the key.
    """
    layers, experts, location = 0, 0, ""
    for path, key, count in _counts(config, ""):
        parts = key.split("_")
        if parts[-1] in _LAYERS:
            _bound(path, count, LAYER_LIMIT, label)
            layers = max(layers, count)
        elif "experts" in parts:
            _bound(path, count, EXPERT_LIMIT, label)
            if count > experts:
                experts, location = count, path
        elif parts[0] == "num":
            _bound(path, count, COUNT_LIMIT, label)
    if layers * experts > STACK_LIMIT:
        raise SourceError(
            f"{location} is {experts:,} in {layers:,} layers, above {STACK_LIMIT:,} together",
            location=f"{label}: {location}",
        )


def check_sizes(config: Any, content: Mapping[str, Any], label: str) -> None:  # noqa: ANN401
    """Refuses a config whose sizes would be the defaults of its class and not the model's.

    A size is stated by its own name, by the name that the class has for it, or under an older
    name if it then differs from the default. A language model inside another may leave out the
    sizes that are defaults, as transformers used to write it, but not all of them.

    Args:
        config: the config object of transformers that was made from `content`.
        content: the content of the `config.json`.
        label: its name in messages.

    Raises:
        SourceError: names what is missing.
    """
    path, text = _text_part(config)
    default = _text_part(_default(config))[1]
    sizes = _sizes_of(text)
    if path:
        where = _inside(content, path)
        missing = [f"{'.'.join(path)}.{name}" for name in sizes.values()]
        stated = any(_states(text, size, name, where, default) for size, name in sizes.items())
    elif sizes:
        missing = [n for size, n in sizes.items() if not _states(text, size, n, content, default)]
        stated = not missing
    else:  # two towers, or a class that calls its sizes otherwise
        parts = type(config).sub_configs
        missing = [*parts] or ["any size"]
        own = parts or _own_fields(config)
        stated = any(key in content for key in own)
    if not stated:
        raise SourceError(
            f"the config does not state {', '.join(missing)}",
            location=label,
            note=f"transformers would plan a default model of the type {config.model_type!r}",
            hint="give the whole config.json that the model was published with",
        )


def _text_part(config: Any) -> tuple[tuple[str, ...], Any]:  # noqa: ANN401
    """The language model's config in a config of transformers, and the keys that lead to it."""
    try:
        text = config.get_text_config()
    except (ValueError, AttributeError):  # several, such as an encoder and a decoder
        return (), config
    if not dataclasses.is_dataclass(text):  # a plain value under the key of a part
        return (), config
    return _path_to(text, config, ()) or (), text


def _path_to(
    part: object,
    config: Any,  # noqa: ANN401
    path: tuple[str, ...],
) -> tuple[str, ...] | None:
    if config is part:
        return path
    for key in getattr(type(config), "sub_configs", ()):
        found = _path_to(part, getattr(config, key, None), (*path, key))
        if found is not None:
            return found
    return None


def _default(config: Any) -> Any:  # noqa: ANN401
    """The config of its class that states nothing, or None where the class needs something."""
    try:
        return type(config)()
    except (ValueError, TypeError, AttributeError, LookupError):
        return None


def _inside(content: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """What a config states at the end of a path, and on the way: older files are flat."""
    stated, level = dict(content), content
    for key in path:
        inner = level.get(key)
        level = inner if isinstance(inner, Mapping) else {}
        stated.update(level)
    return stated


def _own_fields(config: Any) -> set[str]:  # noqa: ANN401
    """The fields that a class of configs has beyond those of all classes."""
    common = next(cls for cls in type(config).__mro__ if cls.__name__ == "PreTrainedConfig")
    return {field.name for field in dataclasses.fields(config)} - {
        field.name for field in dataclasses.fields(common)
    }


def _sizes_of(config: Any) -> dict[str, str]:  # noqa: ANN401
    """The sizes that a class of configs has: transformers' general name and the class's own."""
    own = {field.name for field in dataclasses.fields(config)}
    names = {size: type(config).attribute_map.get(size, size) for size in _SIZES}
    return {size: name for size, name in names.items() if name in own}


def _states(
    config: Any,  # noqa: ANN401
    size: str,
    name: str,
    content: Mapping[str, Any],
    default: Any,  # noqa: ANN401
) -> bool:
    if size in content or name in content:
        return True
    return default is not None and bool(getattr(config, name) != getattr(default, name, None))


def _bound(path: str, count: int, limit: int, label: str) -> None:
    if count > limit:
        raise SourceError(f"{path} is {_short(count)}, above {limit}", location=f"{label}: {path}")


def _counts(config: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str, int]]:
    """(path, key, number) of all integers; of a list the largest, which may be a count."""
    for key, value in config.items():
        location = f"{path}{key}"
        if isinstance(value, Mapping):
            yield from _counts(value, f"{location}.")
        elif isinstance(value, list | tuple):
            yield (
                location,
                str(key),
                max((item for item in value if isinstance(item, int)), default=0),
            )
        elif isinstance(value, int):
            yield location, str(key), value


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of more than 18 digits"  # the text of a long one would take forever
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
