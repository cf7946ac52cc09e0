"""What a config states, checked before anything is done with it.

A config is a stranger's claim. Its words are looked up in tables, so they must be words; and
`transformers` builds a layer and an expert for each that the config counts, so the counts must be
such that this ends, and fits in memory. The bounds are above what the models of today have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.sources.linear import EXPERT_LIMIT

LAYER_LIMIT = 2000
STACK_LIMIT = 2**15
"""Most experts of all layers together; large models of today have about 25,000."""
COUNT_LIMIT = 2**20
"""Most of anything else that a config counts with `num_`: labels, heads, positions."""

_LAYERS = frozenset({"layers", "layer", "blocks", "depth", "depths"})
_INNER = ("decoder", "encoder")


def check_words(config: Mapping[str, Any], label: str) -> None:
    """Refuses a config, or one inside it, whose `model_type` is no word.

    Args:
        config: the content of a `config.json`.
        label: its name in messages.

    Raises:
        SourceError: with the place of the key.
    """
    parts = {"": config}
    for key, value in config.items():
        if isinstance(value, Mapping) and (str(key).endswith("config") or key in _INNER):
            parts[f"{key}."] = value
    for path, part in parts.items():
        word = part.get("model_type")
        if word is not None and not isinstance(word, str):
            raise SourceError(
                f"model_type is {_short(word)}, not a word",
                location=f"{label}: {path}model_type",
                hint='a config.json of transformers has a line such as "model_type": "llama"',
            )


def check_counts(config: Mapping[str, Any], label: str) -> None:
    """Refuses numbers of layers and experts for which building the model would never end.

    Raises:
        SourceError: with the place of the key.
    """
    layers, experts, place = 0, 0, ""
    for path, key, count in _counts(config, ""):
        words = key.split("_")
        if words[-1] in _LAYERS:
            _bound(path, count, LAYER_LIMIT, label)
            layers = max(layers, count)
        elif "experts" in words:
            _bound(path, count, EXPERT_LIMIT, label)
            if count > experts:
                experts, place = count, path
        elif words[0] == "num":
            _bound(path, count, COUNT_LIMIT, label)
    if layers * experts > STACK_LIMIT:
        raise SourceError(
            f"{place} is {experts:,} in {layers:,} layers, above {STACK_LIMIT:,} together",
            location=f"{label}: {place}",
        )


def _bound(path: str, count: int, limit: int, label: str) -> None:
    if count > limit:
        raise SourceError(f"{path} is {_short(count)}, above {limit}", location=f"{label}: {path}")


def _counts(config: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str, int]]:
    """(path, key, number) of all whole numbers; of a list the largest, which may be a count."""
    for key, value in config.items():
        place = f"{path}{key}"
        if isinstance(value, Mapping):
            yield from _counts(value, f"{place}.")
        elif isinstance(value, list | tuple):
            yield place, str(key), max((item for item in value if isinstance(item, int)), default=0)
        elif isinstance(value, int):
            yield place, str(key), value


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of more than 18 digits"  # the text of a long one would take for ever
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
