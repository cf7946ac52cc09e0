"""Size law of learned values: codewords of vectors, tables of a trellis."""

from __future__ import annotations

from reallm_compiler.storage.base import DTYPES, SectionSpec
from reallm_compiler.storage.values import Finite


def codebook_sections(dtype: str, shape: tuple[int, ...], *, shared: bool) -> list[SectionSpec]:
    """Sections of learned values, and of the scale of integers.

    Args:
        dtype: the recipe's word for the type.
        shape: extents of the values.
        shared: a share group stores them once.
    """
    specs = [
        SectionSpec(
            role="codebook",
            dtype=DTYPES[dtype],
            shape=shape,
            term="codebook",
            shared=shared,
            values=Finite(),
        )
    ]
    if dtype == "int8":
        specs.append(
            SectionSpec(
                role="codebook_scale",
                dtype="f32",
                shape=(1,),
                term="codebook",
                shared=shared,
                values=Finite(negative=False, zero=False),
            )
        )
    return specs
