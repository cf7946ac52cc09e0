"""Size law of an adapter: factors, gains, and sections that replace those of its base."""

from __future__ import annotations

from reallm_compiler.stages import LowRank
from reallm_compiler.storage import dora, low_rank
from reallm_compiler.storage.base import DTYPE_NAMES, SectionSpec
from reallm_compiler.storage.values import Finite
from reallm_formats import AdapterEntry, names


def residual(row: AdapterEntry) -> LowRank:
    """The residual stage of a row with factors."""
    return LowRank.model_validate(
        {"kind": "low_rank", "rank": row.rank, "dtype": DTYPE_NAMES[row.dtype]}
    )


def sections(row: AdapterEntry) -> list[SectionSpec]:
    """The sections of a row, which are those that the container asks for."""
    specs = low_rank.factor_sections(residual(row), row.shape) if row.rank else []
    if row.gain:
        specs += dora.sections(row.shape)
    if row.column_gain:
        specs += dora.column_sections(row.shape)
    return specs


def replaced_section(row: tuple[str, str, tuple[int, ...]]) -> SectionSpec:
    """A section (name, type, extents) that an adapter replaces, without knowing its base."""
    name, dtype, shape = row
    role = names.parse_name(name).role
    return SectionSpec(role=role, dtype=dtype, shape=tuple(shape), term="", values=Finite())
