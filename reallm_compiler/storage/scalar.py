"""Size laws of the quantisers that code each weight by itself.

`uniform` and `normal_float` store one code of `bits` bits per weight; `none` stores the weight.
"""

from __future__ import annotations

from reallm_compiler.stages import NoQuantizer, NormalFloatQuantizer, UniformQuantizer
from reallm_compiler.storage.base import DTYPES, SectionSpec
from reallm_compiler.storage.values import Finite


def code_sections(
    params: UniformQuantizer | NormalFloatQuantizer, shape: tuple[int, int]
) -> list[SectionSpec]:
    """Sections of scalar codes for a latent [p, q]."""
    return [SectionSpec(role="codes", dtype=f"b{params.bits}", shape=shape, term="codes")]


def value_sections(
    params: NoQuantizer, shape: tuple[int, int], source_dtype: str
) -> list[SectionSpec]:
    """Sections of uncoded values for a latent [p, q] of a tensor stored as `source_dtype`."""
    dtype = source_dtype if params.dtype == "source" else DTYPES[params.dtype]
    return [SectionSpec(role="values", dtype=dtype, shape=shape, term="codes", values=Finite())]
