"""The contract of a size law.

A size law is a pure integer function from a stage's parameters and the matrix's shape to the
sections that the stage stores. It needs no data and no torch, so the length of an archive is
known before the first weight is read. Its codec must write exactly these sections.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reallm_compiler.storage.values import Anything, ValueLaw
from reallm_formats.dtypes import section_bytes

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "i8"}
"""The recipe's words for number types, as section types."""

ANYTHING = Anything()


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionSpec:
    """A section that will be stored.

    Attributes:
        role: the last part of its name, unique within its matrix or group.
        dtype: element type (`reallm_formats.dtypes`).
        shape: extents in elements.
        term: the budget term that it counts under.
        shared: stored once for the matrix's share group.
        values: what its elements may be; it does not tell two specs apart.
    """

    role: str
    dtype: str
    shape: tuple[int, ...]
    term: str
    shared: bool = False
    values: ValueLaw = field(default=ANYTHING, compare=False)

    @property
    def bytes(self) -> int:
        """Stored bytes, by the size law of `reallm_formats.dtypes`."""
        return section_bytes(self.dtype, self.shape)
