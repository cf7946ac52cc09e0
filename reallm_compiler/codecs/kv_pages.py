"""Pages of keys or values: tensors of a model to stored sections, and back.

    states [b, h, t, d] -> turned back -> H S -> matrices of pages -> scales -> codes

All pages of all sequences are coded, and decoded, by one call: their matrices lie below each other.
Sections keep pages and sequences apart, [pages, b, ...], so that pages can be added, and sequences
taken out or repeated, without decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from reallm_compiler.codecs.contract import Shape
from reallm_compiler.codecs.latent import StagesDecoder
from reallm_compiler.codecs.latent_coder import StagesCoder
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.transforms.hadamard import Rotation
from reallm_compiler.stages import CachedStates, Hadamard, MatrixPlan
from reallm_compiler.storage.kv_cache import check_pages, own_sections, page_layout
from reallm_compiler.storage.matrix import MatrixLayout, layout_of
from reallm_compiler.units import ceil_div

SAMPLE = 1 << 17
"""Normal numbers that tables are learned from, about."""

MIXING = Hadamard(kind="hadamard", sides="columns", block=4096)


class PageCodec:
    """Codes pages of the keys, or of the values, of layers with equal heads.

    Args:
        name: `keys` or `values`.
        states: how they are coded.
        page: tokens of a page, P.
        heads: h.
        channels: d.
        angles: float32 [r / 2], by how much the rotary embedding turns the r first channels from
            token to token; None where pages are coded as they come.

    Raises:
        CodecError: pages of this shape cannot be coded so.
    """

    def __init__(
        self,
        name: str,
        states: CachedStates,
        page: int,
        heads: int,
        channels: int,
        *,
        angles: Tensor | None = None,
    ) -> None:
        check_pages(name, states, page, heads, channels)
        self._states, self._page, self._heads, self._channels = states, page, heads, channels
        self._layout = page_layout(states, page, heads, channels)
        self._tables = learned_tables(states.plan, self._layout.shape)
        self._turn: tuple[Tensor, Tensor] | None = None
        if angles is not None:
            turned = torch.arange(page, device=angles.device)[:, None] * angles.float()
            self._turn = turned.cos(), turned.sin()  # each [P, r / 2]
        self._mix = Rotation(MIXING, (1, channels), torch.float32) if states.hadamard else None

    @property
    def tables(self) -> Mapping[str, Tensor]:
        """What the quantizer learned; empty for most."""
        return self._tables

    def encode(self, states: Tensor) -> Sections:
        """Sections [pages, b, ...] of states [b, h, pages x P, d]."""
        b, h, tokens, d = states.shape
        pages = tokens // self._page
        x = states.to(torch.float32).reshape(b, h, pages, self._page, d)
        if self._turn is not None:
            x = _turned(x, self._turn[0], -self._turn[1])
        if self._mix is not None:
            x = self._mix.inputs(x)
        by_channels = self._states.rows == "channels"
        order = (2, 0, 1, 4, 3) if by_channels else (2, 0, 1, 3, 4)  # [pages, b, h, rows, columns]
        p, q = self._layout.shape
        matrix = x.permute(order).reshape(pages * b * p, q).contiguous()
        if matrix.data_ptr() == states.data_ptr():
            matrix = matrix.clone()  # it is used up
        coder = _coder(self._layout, len(matrix), torch.Generator())
        sections = coder.encode(matrix, self._tables_on(matrix.device))
        roles = [spec.role for spec in own_sections(self._layout)]
        return {role: sections[role].reshape(pages, b, -1) for role in roles}

    def decode(self, sections: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """States [b, h, pages x P, d] of sections [pages, b, ...]."""
        first = next(iter(sections.values()))
        pages, b = first.shape[:2]
        p, q = self._layout.shape
        flat = {role: section.reshape(-1) for role, section in sections.items()}
        shape = (pages * b * p, q)
        decoder = StagesDecoder(
            self._states.plan, shape, {**flat, **self._tables_on(first.device)}, torch.float32
        )
        matrix = torch.empty(shape, dtype=torch.float32, device=first.device)
        if not decoder.fill(matrix, 0, None):
            matrix = decoder.rows(0, shape[0])
        h, d, page = self._heads, self._channels, self._page
        if self._states.rows == "channels":
            x = matrix.view(pages, b, h, d, page).permute(1, 2, 0, 4, 3)
        else:
            x = matrix.view(pages, b, h, page, d).permute(1, 2, 0, 3, 4)
        # [b, h, pages, P, d]
        if self._mix is not None:
            x = self._mix.restore_(x.reshape(-1, d), 0).view(b, h, pages, page, d)
        if self._turn is not None:
            x = _turned(x, *self._turn)
        return x.reshape(b, h, pages * page, d).to(dtype)

    def _tables_on(self, device: torch.device) -> Mapping[str, Tensor]:
        """The tables, which stay where they were wanted last."""
        if any(table.device != device for table in self._tables.values()):
            self._tables = {role: table.to(device) for role, table in self._tables.items()}
        return self._tables


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels i and i + r / 2 of x [..., P, d] turned by each token's angles, for i < r / 2."""
    half = cos.shape[1]
    cos, sin = cos.to(x.device), sin.to(x.device)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


@lru_cache(maxsize=16)
def learned_tables(plan: MatrixPlan, shape: Shape) -> Mapping[str, Tensor]:
    """Tables of the quantizer of pages [p, q], learned from normal numbers under the same scales.

    So no sequence depends on another, and all layers share them. Empty for kinds that learn none.
    """
    layout = layout_of(plan, shape, "f32")
    if not layout.table_roles:
        return {}
    p, q = shape
    rows = ceil_div(SAMPLE, p * q) * p
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(rows, q, generator=generator)
    sections = _coder(layout, rows, generator).encode(sample, {})
    return {role: sections[role] for role in layout.table_roles}


def _coder(layout: MatrixLayout, rows: int, generator: torch.Generator) -> StagesCoder:
    """A coder of so many rows of pages below each other."""
    return StagesCoder(
        plan=layout.plan,
        shape=(rows, layout.shape[1]),
        source_dtype=layout.source_dtype,
        tables=layout.table_roles,
        generator=generator,
    )
