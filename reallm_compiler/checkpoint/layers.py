"""The number of the layer that a tensor belongs to.

Layers for multi-token prediction are no layers of the model: they guess further tokens from its
last state, and transformers leaves most of them out. They come under a name of their own
(`mtp.layers.0`), or numbered on after the last layer (`model.layers.61` of 61 layers). Either way
they have no number here, so that `layers: -1` of a recipe is the model's last layer; a recipe
speaks of them by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|resblocks|encoders|decoders)\.(\d+)\b")
_PREDICTION = re.compile(r"(^|[._])(mtp|nextn)(?=[._\d]|$)")
_COUNT = re.compile(r"(num_|n_)?((hidden|encoder|decoder)_)?layers?|depth")
_MODEL_COUNT = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
_TOKENS = re.compile(r"(?!.*(pos|patch)).*emb.*|wte")


def layer_index(name: str) -> int | None:
    """Number of the layer in a name such as `model.layers.7.mlp.up_proj`, or None."""
    found = _LAYER.search(name)
    if found is None or _PREDICTION.search(name, 0, found.start()):
        return None
    return int(found[1])


def prediction_layers(names: Iterable[str], config: Mapping[str, Any] | None) -> frozenset[str]:
    """The layers numbered on after the model's last one, as prefixes: `model.layers.61`.

    The language model's stack is the one beside a table of embeddings. It has such layers if
    none of the counts in the config is its length, and that of the model's layers is smaller.

    Args:
        names: of all tensors of the checkpoint.
        config: the model's config, or None.
    """
    last = _model_layers(config or {})
    if last is None:
        return frozenset()
    counts = set(_counts(config or {}))
    stacks: dict[str, set[int]] = {}
    beside: set[str] = set()
    for name in names:
        found = _LAYER.search(name)
        if found is not None:
            stacks.setdefault(name[: found.start(1)], set()).add(int(found[1]))
            continue
        module, _, leaf = name.removesuffix(".weight").rpartition(".")
        if _TOKENS.fullmatch(leaf):
            beside.add(module)
    extra: set[str] = set()
    for stack, numbers in stacks.items():
        length = max(numbers) + 1
        module = stack.rstrip(".").rpartition(".")[0]
        if module in beside and length > last and length not in counts:
            extra.update(f"{stack}{number}" for number in numbers if number >= last)
    return frozenset(extra)


def layer_prefix(name: str) -> str | None:
    """The name up to the number of its layer, `model.layers.61`, or None."""
    found = _LAYER.search(name)
    return None if found is None else name[: found.end(1)]


def is_prediction(name: str, prediction: frozenset[str]) -> bool:
    """Whether a tensor is of multi-token prediction.

    Args:
        name: of the tensor, in the checkpoint or under another prefix in a model.
        prediction: what `prediction_layers` gave for the checkpoint.
    """
    if _PREDICTION.search(name):
        return True
    layer = layer_prefix(name)
    return layer is not None and _numbered(layer) in {_numbered(prefix) for prefix in prediction}


def _numbered(prefix: str) -> str:
    """`layers.61` of `model.layers.61`: a model may have it under another prefix."""
    return ".".join(prefix.split(".")[-2:])


def model_layer(name: str, prediction: frozenset[str]) -> int | None:
    """Number of the layer of the model that a tensor or matrix belongs to, or None.

    Args:
        name: of the tensor or matrix.
        prediction: what `prediction_layers` gave for the checkpoint.
    """
    number = layer_index(name)
    if number is None or not prediction:
        return number
    return None if layer_prefix(name) in prediction else number


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (value for value in config.values() if isinstance(value, Mapping))


def _model_layers(config: Mapping[str, Any]) -> int | None:
    """How many layers the language model has, or None where the config does not say."""
    inner = [config[key] for key in _TEXT if isinstance(config.get(key), Mapping)]
    for part in (*inner, config):
        for key in _MODEL_COUNT:
            count = part.get(key)
            if isinstance(count, int) and not isinstance(count, bool) and count > 0:
                return count
    return None


def _counts(config: Mapping[str, Any]) -> Iterator[int]:
    """Every count of layers that a config states."""
    for part in _parts(config):
        for key, value in part.items():
            if isinstance(value, int) and _COUNT.fullmatch(str(key)):
                yield value
