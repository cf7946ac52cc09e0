"""Kinds of archives: each has a module that validates its document.

A new kind is a module with a `check` of the same form and a line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

from reallm_formats.errors import FormatError
from reallm_formats.kinds import adapter, decoder, model, statistics
from reallm_formats.sections import Row


class DocumentCheck(Protocol):
    """Refuses a document that breaks the rules of its kind."""

    def __call__(
        self, document: Mapping[str, Any], sections: Sequence[Row], *, newer: bool
    ) -> object:
        """Raise `FormatError` if `document` does not fit its kind, or not these sections."""


KINDS: Final[Mapping[str, DocumentCheck]] = MappingProxyType(
    {
        "adapter": adapter.parse_adapter,
        "decoder": decoder.parse_decoder,
        "model": model.parse_model,
        "statistics": statistics.parse_statistics,
    }
)


def check_document(
    kind: str, document: Mapping[str, Any], sections: Sequence[Row], *, newer: bool
) -> None:
    """Refuse an unknown kind (rule M3), and a document that does not fit its kind."""
    if kind not in KINDS:
        raise FormatError(
            "M3",
            f"archives of kind `{kind}` are not known; known: {', '.join(sorted(KINDS))}",
            location="manifest: kind",
            hint="a newer reallm may know it",
        )
    KINDS[kind](document, sections, newer=newer)
