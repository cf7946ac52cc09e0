"""Size law of the quantizer `none`: the latent itself, in a float type."""

from __future__ import annotations

from fractions import Fraction

from reallm_compiler.stages import NoQuantizer
from reallm_compiler.storage.base import DTYPES, Context, SectionSpec, Shape, SizeLaw
from reallm_compiler.storage.values import Finite


class PlainLaw(SizeLaw[NoQuantizer]):
    """One number per weight."""

    def sections(self, params: NoQuantizer, shape: Shape, context: Context) -> list[SectionSpec]:
        """The values of a latent [p, q]."""
        dtype = context.source_dtype if params.dtype == "source" else DTYPES[params.dtype]
        return [SectionSpec(role="values", dtype=dtype, shape=shape, term="codes", values=Finite())]

    def paper_bits(
        self, params: NoQuantizer, shape: Shape, context: Context
    ) -> dict[str, Fraction]:
        """All that is stored."""
        (values,) = self.sections(params, shape, context)
        return {"codes": Fraction(8 * values.nbytes)}
