"""A quantized cache of keys and values for any model that uses transformers' own cache classes.

    cache = kv_cache(model, "kv-4bit")
    model.generate(**inputs, past_key_values=cache)

Only layers that attend to all tokens before are quantized: layers with a sliding window keep few
tokens, and stay as they are.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from reallm_compiler.checkpoint.attention import check_keeps_heads
from reallm_compiler.codecs.kv_pages import PageCodec
from reallm_compiler.codecs.kv_states import CachedTokens
from reallm_compiler.runtime.kv_settings import KvSource, kv_settings
from reallm_compiler.stages import KvCache
from reallm_compiler.storage.kv_cache import coded_pages


class QuantizedCache(DynamicCache):
    """A cache whose old tokens are codes."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that it holds."""
        tables: dict[int, Tensor] = {}
        total = 0
        layers: list[Any] = [*self.layers]
        for layer in layers:
            if isinstance(layer, PagedLayer):
                total += layer.nbytes
                tables |= {id(table): table for table in layer.tables}
            elif layer.is_initialized:
                total += _bytes_of((layer.keys, layer.values))
        return total + _bytes_of(tables.values())


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PagedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer.

    A call of the model sees its own tokens, and those of the window, as they are. Afterwards the
    oldest tokens that fill a page beyond the window are coded.

    Args:
        params: the cache.
        codecs: those of all layers.
    """

    is_compileable = False
    is_croppable = False  # a token that was coded does not become what it was

    def __init__(self, params: KvCache, codecs: _Codecs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._params = params
        self._codecs = codecs
        self._parts: tuple[CachedTokens, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Find the codecs, now that the layer's heads are known."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._parts = tuple(
            CachedTokens(self._codecs(name, states), self._params.page, states[:, :, :0])
            for name, states in (("keys", key_states), ("values", value_states))
        )
        self.is_initialized = True
        self._show()

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """All keys and values [b, h, t, d], with the new ones; then codes what is old enough.

        Args:
            key_states: new keys [b, h, n, d].
            value_states: new values.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        of_keys, of_values = self._parts
        keys, values = of_keys.append(key_states), of_values.append(value_states)
        pages = coded_pages(self._params, of_keys.tokens)
        for part in self._parts:
            part.code(pages, self._params.first)
        self._show()
        return keys, values

    def _show(self) -> None:
        """`keys` and `values` are, for those who look, the tokens behind the last page."""
        self.keys, self.values = (part.recent for part in self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors; tables that layers share are not among them."""
        return _bytes_of(self.tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """All its tensors but those tables."""
        return [tensor for part in self._parts for tensor in part.tensors]

    @property
    def tables(self) -> list[Tensor]:
        """Tables that layers share."""
        return [table for part in self._parts for table in part.tables]

    def get_seq_length(self) -> int:
        """All tokens."""
        return self._parts[0].tokens if self._parts else 0

    def reset(self) -> None:
        """Forget all tokens."""
        self._parts = ()
        self.keys = self.values = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens.

        Args:
            tokens_to_remove: how many, as a negative number; a positive one is the length that is
                left, as it was in older versions of transformers.
        """
        count = tokens_to_remove
        count = max(self.get_seq_length() - count, 0) if count > 0 else -count
        for part in self._parts:
            part.crop(count)
        if self._parts:
            self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequences in another order, for beam search."""
        self._select(lambda t, dim: t.index_select(dim, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence so many times."""
        self._select(lambda t, dim: t.repeat_interleave(repeats, dim=dim))

    def batch_select_indices(self, indices: Tensor) -> None:
        """These sequences alone."""
        self._select(
            lambda t, dim: t[indices.to(t.device)] if dim == 0 else t[:, indices.to(t.device)]
        )

    def _select(self, of_batch: Any) -> None:  # noqa: ANN401
        for part in self._parts:
            part.select(of_batch)
        if self._parts:
            self._show()

    def offload(self) -> None:
        """Move all to the CPU."""
        self._move("cpu")

    def prefetch(self) -> None:
        """Move all back."""
        if self._parts:
            self._move(self.device)

    def _move(self, device: torch.device | str) -> None:
        for part in self._parts:
            part.move(device)
        if self._parts:
            self._show()


class _Codecs:
    """The codecs of all layers: one for keys, or values, of equal heads.

    Args:
        params: the cache.
        angles: see `rotary_angles`.
    """

    def __init__(self, params: KvCache, angles: Tensor | None) -> None:
        self._params = params
        self._angles = angles
        self._known: dict[tuple[str, int, int], PageCodec] = {}

    def __call__(self, name: str, states: Tensor) -> PageCodec:
        """The codec of `keys` or `values` [b, h, t, d]."""
        _, heads, _, channels = states.shape
        key = (name, heads, channels)
        if key not in self._known:
            params = self._params
            turned = name == "keys" and params.keys.rotary == "before"
            angles = self._angles if turned else None
            if angles is not None and 2 * len(angles) > channels:
                angles = None
            self._known[key] = PageCodec(
                name, params.states[name], params.page, heads, channels, angles=angles
            )
        return self._known[key]


def rotary_angles(model: Any) -> Tensor | None:  # noqa: ANN401
    """By how much the rotary embedding turns channels from token to token, float32 [r / 2].

    Any angles leave keys what they are, as pages are turned back and forth; the right ones make the
    keys of a page alike.
    """
    found = {
        name.rpartition(".")[2]: buffer
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    }
    for name in ("full_attention_inv_freq", "inv_freq"):
        if name in found:
            angles: Tensor = found[name].detach().float()
            return angles
    return None


def new_cache(model: Any, params: KvCache) -> QuantizedCache:  # noqa: ANN401
    """An empty cache for a model.

    Raises:
        SourceError: the model keeps something else than keys and values of heads.
    """
    config = model.config.get_text_config(decoder=True)
    check_keeps_heads(model)
    cache = QuantizedCache(config=config)
    codecs = _Codecs(params, rotary_angles(model))
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = PagedLayer(params, codecs)
    return cache


def kv_cache(model: Any, settings: KvSource) -> DynamicCache:  # noqa: ANN401
    """An empty cache for a model of transformers, for its `past_key_values`.

    Args:
        model: the model, from wherever it is.
        settings: a shipped recipe such as `kv-4bit`, a recipe file, an archive, or the `kv_cache`
            section of a recipe as plain data; `none` for transformers' own cache.

    Raises:
        SourceError: the model keeps something else than keys and values of heads.
        RecipeError: the recipe is wrong, or says nothing of a cache.
    """
    params = kv_settings(settings)
    if params is None:
        return DynamicCache(config=model.config.get_text_config(decoder=True))
    return new_cache(model, params)


def generate_with(model: Any, params: KvCache) -> None:  # noqa: ANN401
    """Have `model.generate` make such a cache in each call that is given none.

    Raises:
        SourceError: as `new_cache`.
    """
    check_keeps_heads(model)
    generate = type(model).generate

    @functools.wraps(generate)
    def quantized(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        config = kwargs.get("generation_config") or self.generation_config
        own = kwargs.get("cache_implementation", config.cache_implementation) is not None
        used = kwargs.get("use_cache", config.use_cache) is not False
        if kwargs.get("past_key_values") is None and used and not own:
            kwargs["past_key_values"] = new_cache(self, params)
        return generate(self, *args, **kwargs)

    model.generate = types.MethodType(quantized, model)
