"""The keys, or the values, of one layer: first tokens, coded pages, and tokens not coded yet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reallm_compiler.codecs.kv_pages import PageCodec
from reallm_compiler.codecs.sections import Sections


class CachedTokens:
    """States [b, h, t, d] of tokens in their order, of which the oldest pages are coded.

    Args:
        codec: of their pages.
        page: tokens of a page, P.
        empty: states [b, h, 0, d], whose type and device are meant.

    Attributes:
        recent: states [b, h, n, d] of the tokens behind the last page.
    """

    def __init__(self, codec: PageCodec, page: int, empty: Tensor) -> None:
        self._codec = codec
        self._page = page
        self._empty = empty
        self._first = empty
        self._sections: Sections = {}
        self.recent = empty

    @property
    def pages(self) -> int:
        """Coded pages."""
        return len(next(iter(self._sections.values()))) if self._sections else 0

    @property
    def tokens(self) -> int:
        """All tokens, t."""
        return self._first.shape[2] + self.pages * self._page + self.recent.shape[2]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors but the codec's tables."""
        return [*self._sections.values(), self._first, self.recent]

    @property
    def tables(self) -> list[Tensor]:
        """What the codec's quantizer learned."""
        return [*self._codec.tables.values()]

    def append(self, states: Tensor) -> Tensor:
        """Add tokens [b, h, n, d]; gives the states of all tokens [b, h, t, d]."""
        self.recent = torch.cat([self.recent, states], dim=2)
        if not self._sections:
            return self.recent
        coded = self._codec.decode(self._sections, states.dtype)
        return torch.cat([self._first, coded, self.recent], dim=2)

    def code(self, pages: int, first: int) -> None:
        """Code the oldest tokens, so that there are so many pages behind the `first` tokens."""
        more = pages - self.pages
        if more <= 0:
            return
        if not self._sections:
            self._first, self.recent = _split(self.recent, first)
        old, self.recent = _split(self.recent, more * self._page)
        self._store(self._codec.encode(old))

    def crop(self, count: int) -> None:
        """Remove the last `count` tokens; what is left of a page stays as it is decoded."""
        missing = count - self.recent.shape[2]
        if missing > 0 and self._sections:
            pages = min(-(-missing // self._page), self.pages)
            last = {role: section[-pages:] for role, section in self._sections.items()}
            opened = self._codec.decode(last, self.recent.dtype)
            self.recent = torch.cat([opened, self.recent], dim=2)
            self._sections = {role: s[:-pages].clone() for role, s in self._sections.items()}
            if not self.pages:
                self._sections = {}
                self.recent = torch.cat([self._first, self.recent], dim=2)
                self._first = self._empty
        left = max(self.recent.shape[2] - count, 0)
        self.recent = self.recent[:, :, :left].clone()

    def select(self, of_batch: Callable[[Tensor, int], Tensor]) -> None:
        """Take sequences out, repeat or reorder them.

        Args:
            of_batch: (tensor, its dimension of sequences) -> the tensor with other sequences.
        """
        self._sections = {role: of_batch(s, 1) for role, s in self._sections.items()}
        self._first = of_batch(self._first, 0)
        self._empty = of_batch(self._empty, 0)
        self.recent = of_batch(self.recent, 0)

    def move(self, device: torch.device | str) -> None:
        """Move all tensors to a device."""
        self._sections = {role: s.to(device) for role, s in self._sections.items()}
        self._first, self.recent = self._first.to(device), self.recent.to(device)

    def _store(self, pages: Sections) -> None:
        if self._sections:
            pages = {role: torch.cat([self._sections[role], s]) for role, s in pages.items()}
        self._sections = pages


def _split(states: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` tokens and the others, each in memory of its own."""
    return states[:, :, :count].clone(), states[:, :, count:].clone()
