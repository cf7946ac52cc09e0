"""Size law of a quantized cache of keys and values.

A page of P tokens of one sequence in one layer stores its keys, and its values, as a matrix: with
h heads of d channels [h d, P] where rows are channels, and [h P, d] where they are tokens. What it
stores is the size law of its scales and of its quantizer; codebooks are stored once for all pages.
Of t tokens in a layer

    n = max(0, floor((t - first - window) / P))

pages are coded, and t - n P tokens are kept as they are, in the type of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reallm_compiler.errors import CodecError
from reallm_compiler.stages import CachedStates, KvCache, MatrixPlan
from reallm_compiler.storage.base import SectionSpec, Shape
from reallm_compiler.storage.matrix import MatrixLayout, layout_of


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadShape:
    """The cached heads of one attention layer.

    Attributes:
        heads: key and value heads, h.
        keys, values: channels of a head, d.
    """

    heads: int
    keys: int
    values: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBytes:
    """What one layer keeps of one sequence, in bytes.

    Attributes:
        kept: of tokens that are kept as they are.
        coded: of pages, by role: `keys.codes`, `keys.scales`, `values.zeros`, ...
        kept_tokens: how many tokens are kept as they are.
    """

    kept: int
    coded: Mapping[str, int]
    kept_tokens: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.kept + sum(self.coded.values())


def coded_pages(params: KvCache, tokens: int) -> int:
    """Pages that are coded of so many tokens."""
    return max(0, (tokens - params.first - params.window) // params.page)


def page_shape(states: CachedStates, page: int, heads: int, channels: int) -> Shape:
    """Rows and columns of the matrix of a page."""
    if states.rows == "channels":
        return heads * channels, page
    return heads * page, channels


def page_layout(
    states: CachedStates, page: int, heads: int, channels: int, *, pages: int = 1
) -> MatrixLayout:
    """The layout of the matrix of a page, or of so many pages below each other."""
    p, q = page_shape(states, page, heads, channels)
    return layout_of(states.plan, (pages * p, q), "f32")


def own_sections(layout: MatrixLayout) -> list[SectionSpec]:
    """The sections of each page; the others, tables, are stored once."""
    return [spec for spec in layout.sections if spec.role not in layout.table_roles]


def check_pages(name: str, states: CachedStates, page: int, heads: int, channels: int) -> None:
    """Refuse pages that cannot be coded, or not together with other pages.

    Raises:
        CodecError: with the reason.
    """
    one = page_layout(states, page, heads, channels)
    p, q = one.shape
    location = f"kv_cache.{name}"
    if one.refusal is not None:
        stage, reason = one.refusal
        raise CodecError(reason, location=f"{location}.{stage}")
    # Where a page ends within a byte, or its numbers depend on other pages, eight have fewer bytes.
    eight = own_sections(page_layout(states, page, heads, channels, pages=8))
    for single, many in zip(own_sections(one), eight, strict=True):
        if many.nbytes != 8 * single.nbytes:
            raise CodecError(
                f"pages of {p} x {q} numbers do not store their {single.role} by themselves",
                location=location,
                hint="use scales of one level per row, or per block with a block that divides "
                f"{q}; of two levels with `offset: superblock` and a superblock that divides "
                "the scales of a page; vectors must divide rows or columns, too",
            )


def layer_bytes(params: KvCache, shape: HeadShape, tokens: int, number_bytes: int) -> LayerBytes:
    """What a layer keeps of `tokens` tokens of one sequence.

    Args:
        params: the cache.
        shape: the layer's heads.
        tokens: t.
        number_bytes: bytes of a number in the type of the model.
    """
    pages = coded_pages(params, tokens)
    kept = tokens - pages * params.page
    coded: dict[str, int] = {}
    for name, channels in (("keys", shape.keys), ("values", shape.values)):
        layout = page_layout(params.states[name], params.page, shape.heads, channels)
        for spec in own_sections(layout):
            coded[f"{name}.{spec.role}"] = pages * spec.nbytes
    numbers = kept * shape.heads * (shape.keys + shape.values)
    return LayerBytes(kept=numbers * number_bytes, coded=coded, kept_tokens=kept)


def table_bytes(params: KvCache, shape: HeadShape) -> dict[tuple[MatrixPlan, Shape], int]:
    """Bytes of codebooks, by the plan and the shape of the pages that share one."""
    found = {}
    for name, channels in (("keys", shape.keys), ("values", shape.values)):
        layout = page_layout(params.states[name], params.page, shape.heads, channels)
        tables = [spec.nbytes for spec in layout.sections if spec.role in layout.table_roles]
        found[layout.plan, layout.shape] = sum(tables)
    return found
