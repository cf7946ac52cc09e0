"""Size law of DoRA: one float16 gain for each of the p output rows, 16 p bits."""

from __future__ import annotations

from reallm_compiler.storage.base import SectionSpec, Shape
from reallm_compiler.storage.values import Finite


def sections(shape: Shape) -> list[SectionSpec]:
    """Sections of the gains for a matrix [p, q]."""
    return [SectionSpec(role="gain", dtype="f16", shape=(shape[0],), term="dora", values=Finite())]
