"""What a model keeps of the tokens before, to the byte, for a context of so many tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from reallm_compiler.checkpoint.attention import CachedLayer
from reallm_compiler.stages import KvCache, MatrixPlan
from reallm_compiler.storage.base import Shape
from reallm_compiler.storage.kv_cache import HeadShape, check_pages, layer_bytes, table_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheBudget:
    """Bytes of keys and values of one sequence, in all layers.

    Attributes:
        context: tokens of the sequence.
        layers: layers that keep keys and values.
        coded: of coded pages, by role, such as `keys.codes` and `values.scales`.
        kept: of tokens that are kept as they are: the window, the first ones, and all of layers
            with a sliding window.
        tables: of codebooks, which all sequences share.
        plain: of all of them without a quantized cache.
        token: of one more token, once its page is coded.
        plain_token: of one more token that is kept as it is.
    """

    context: int
    layers: int
    coded: Mapping[str, int]
    kept: int
    tables: int
    plain: int
    token: Fraction
    plain_token: int

    @property
    def total(self) -> int:
        """All that is kept."""
        return sum(self.coded.values()) + self.kept + self.tables

    def to_json(self) -> dict[str, Any]:
        """Plain data; `coded_bytes`, `kept_bytes` and `table_bytes` add up to `bytes`."""
        return {
            "context": self.context,
            "layers": self.layers,
            "coded": dict(self.coded),
            "coded_bytes": sum(self.coded.values()),
            "kept_bytes": self.kept,
            "table_bytes": self.tables,
            "bytes": self.total,
            "plain_bytes": self.plain,
            "token_bytes": float(self.token),
            "plain_token_bytes": self.plain_token,
        }


def cache_budget(
    params: KvCache | None, layers: Sequence[CachedLayer], context: int, number_bytes: int
) -> CacheBudget:
    """The bytes of a context.

    Args:
        params: the cache; None for keys and values as they are.
        layers: what the model keeps.
        context: tokens of one sequence.
        number_bytes: bytes of a number in the type of the model.

    Raises:
        CodecError: pages of these heads cannot be coded so.
    """
    coded: Counter[str] = Counter()
    kept = plain = plain_token = 0
    token = Fraction(0)
    tables: dict[tuple[MatrixPlan, Shape], int] = {}
    checked: set[HeadShape] = set()
    for layer in layers:
        each = layer.heads * (layer.keys + layer.values) * number_bytes
        held = context if layer.window is None else min(context, layer.window - 1)
        plain += held * each
        plain_token += each if layer.window is None else 0
        if params is None or layer.window is not None:
            kept += held * each
            token += each if layer.window is None else 0
            continue
        shape = HeadShape(heads=layer.heads, keys=layer.keys, values=layer.values)
        if shape not in checked:
            checked.add(shape)
            check_pages("keys", params.keys, params.page, shape.heads, shape.keys)
            check_pages("values", params.values, params.page, shape.heads, shape.values)
            tables |= table_bytes(params, shape)
        found = layer_bytes(params, shape, context, number_bytes)
        coded.update(found.coded)
        kept += found.kept
        one = layer_bytes(params, shape, params.first + params.window + params.page, number_bytes)
        token += Fraction(sum(one.coded.values()), params.page)
    return CacheBudget(
        context=context,
        layers=len(layers),
        coded=dict(coded),
        kept=kept,
        tables=sum(tables.values()),
        plain=plain,
        token=token,
        plain_token=plain_token,
    )
