"""Size law of DoRA: one float16 magnitude for each of the p output rows, 16 p bits."""

from __future__ import annotations

from reallm_compiler.storage.base import SectionSpec, Shape
from reallm_compiler.storage.values import Finite


def sections(shape: Shape) -> list[SectionSpec]:
    """Sections of the magnitudes for a matrix [p, q]."""
    return [
        SectionSpec(role="magnitude", dtype="f16", shape=(shape[0],), term="dora", values=Finite())
    ]
