"""The document of kind `decoder`: one trained decoder that archives of kind `model` may use.

    structure   how the decoder is built; open, read by the compiler
    provenance  what made it: text, bytes or integers by name

A decoder holds three sections and nothing else: the codes of its weights, a scale for each of
their output channels, and what is stored as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from reallm_formats import names
from reallm_formats.checks import closed_map, provenance_map, typed
from reallm_formats.errors import FormatError
from reallm_formats.sections import Row

KEYS: Final = ("provenance", "structure")
GROUP: Final = "decoder"
ROLES: Final = (
    ("decoder_codes", ("b2", "b3", "b4", "b5", "b6", "b7", "b8")),
    ("decoder_scales", ("f16",)),
    ("decoder_values", ("f16",)),
)
"""Role and possible types of each section, in the order of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderDocument:
    """The document of an archive of kind `decoder`; see the module for its parts."""

    structure: Mapping[str, Any]
    provenance: Mapping[str, str | bytes | int]

    def plain(self) -> dict[str, Any]:
        """The document as the manifest stores it."""
        return {"provenance": dict(self.provenance), "structure": dict(self.structure)}


def section_name(role: str) -> str:
    """Name of the section of one role."""
    return names.share_section(GROUP, role)


def parse_decoder(
    document: Mapping[str, Any], sections: Sequence[Row] = (), *, newer: bool = False
) -> DecoderDocument:
    """The document of kind `decoder` from plain data, checked by itself and with its sections.

    Raises:
        FormatError: rules E1, E2, D7, M2.
    """
    where = "manifest: document"
    items = closed_map(document, KEYS, "E1", where, newer=newer)
    structure = typed(items["structure"], dict, "E1", f"{where}.structure")
    provenance = provenance_map(items["provenance"], "E1", f"{where}.provenance")
    _check_sections(sections)
    return DecoderDocument(structure=structure, provenance=provenance)


def _check_sections(sections: Sequence[Row]) -> None:
    """The three sections of a decoder, each of one extent (E2)."""
    if len(sections) != len(ROLES):
        message = f"a decoder has {len(ROLES)} sections; {len(sections)} are listed"
        raise FormatError("E2", message, location="manifest: sections")
    for index, ((name, dtype, shape), (role, dtypes)) in enumerate(
        zip(sections, ROLES, strict=True)
    ):
        wanted = section_name(role)
        if name == wanted and dtype in dtypes and len(shape) == 1:
            continue
        message = (
            f"section {name} is {dtype} {list(shape)}; {wanted} of one extent stands here, as "
            f"{' or '.join(dtypes)}"
        )
        raise FormatError("E2", message, location=f"manifest: sections[{index}]")
