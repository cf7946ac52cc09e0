"""What a model keeps of the tokens before, layer by layer: found by running a token without memory.

Which layers keep keys and values, and of how many heads, is said in other words by each config. So
the model is built on torch's `meta` device and given one token; its cache then has the shapes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.errors import SourceError


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedLayer:
    """Keys and values that a layer keeps of a token.

    Attributes:
        heads: key and value heads.
        keys, values: channels of a head.
        window: most tokens that it keeps; None for all.
    """

    heads: int
    keys: int
    values: int
    window: int | None = None


def cached_layers(config: Mapping[str, Any], label: str) -> list[CachedLayer]:
    """The layers of a model that keep keys and values, in order.

    Args:
        config: the content of its `config.json`.
        label: its name in messages.

    Raises:
        SourceError: it keeps something else (see `check_keeps_heads`), or cannot be run so.
    """
    model: Any = meta_model(config, label)
    check_keeps_heads(model, label)
    torch: Any = importlib.import_module("torch")
    caches: Any = importlib.import_module("transformers.cache_utils")
    model.config.get_text_config(decoder=True).pad_token_id = None  # it would be looked for
    cache = caches.DynamicCache(config=model.config.get_text_config(decoder=True))
    try:
        with torch.no_grad(), torch.device("meta"):
            token = torch.zeros(1, 1, dtype=torch.int64)
            model.eval()(input_ids=token, past_key_values=cache, use_cache=True)
    except Exception as error:  # whatever a class raises for tensors without memory
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SourceError(
            "the shapes of its keys and values are not known before it runs",
            location=label,
            note=f"{type(error).__name__}: {reason}",
        ) from error
    return [
        CachedLayer(
            heads=layer.keys.shape[1],
            keys=layer.keys.shape[3],
            values=layer.values.shape[3],
            window=getattr(layer, "sliding_window", None),
        )
        for layer in cache.layers
        if getattr(layer, "is_initialized", False)
    ]


def check_keeps_heads(model: Any, label: str | None = None) -> None:  # noqa: ANN401
    """Refuse a model that keeps something else than keys and values of heads.

    Args:
        model: of transformers, with or without weights.
        label: its name in messages.

    Raises:
        SourceError: with the reason.
    """
    caches: Any = importlib.import_module("transformers.cache_utils")
    config = model.config.get_text_config(decoder=True)
    whole, sliding = caches.DynamicLayer, caches.DynamicSlidingWindowLayer
    why = None
    if model.config.is_encoder_decoder:
        why = "it has an encoder, whose states are kept, too"
    elif getattr(config, "kv_lora_rank", None):
        why = "its attention joins keys and values in latents (MLA)"
    elif not model.can_generate():
        why = "it does not generate text"
    elif model._is_stateful or not model._supports_default_dynamic_cache():
        why = "its states are not keys and values of tokens"
    else:
        kinds = {type(layer) for layer in caches.DynamicCache(config=config).layers}
        others = sorted(kind.__name__ for kind in kinds - {whole, sliding})
        if others:
            why = f"it has layers that keep other states ({', '.join(others)})"
        elif whole not in kinds:
            why = "all its layers keep no more than a sliding window"
    if why is not None:
        raise SourceError(
            f"keys and values of {type(model).__name__} cannot be quantized: {why}",
            location=label,
            hint='leave the cache as it is: `--kv-cache none`, or `kv_cache="none"`',
        )
