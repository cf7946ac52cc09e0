"""Size law of DoRA: one float16 gain for each of the p output rows, 16 p bits."""

from __future__ import annotations

from reallm_compiler.storage.base import SectionSpec, Shape
from reallm_compiler.storage.values import Finite


def sections(shape: Shape) -> list[SectionSpec]:
    """Sections of the gains for a matrix [p, q]."""
    return [_gains("gain", shape[0])]


def column_sections(shape: Shape) -> list[SectionSpec]:
    """Sections of the gains of columns that tuning adds to a matrix [p, q]."""
    return [_gains("column_gain", shape[1])]


def _gains(role: str, count: int) -> SectionSpec:
    return SectionSpec(role=role, dtype="f16", shape=(count,), term="dora", values=Finite())
