"""Size law of the quantizer `lloyd_max`: one code per weight, and a float16 table."""

from fractions import Fraction

from lloyd_max.stage import LloydMaxQuantizer
from reallm_compiler.storage.base import Context, SectionSpec, Shape, SizeLaw


class LloydMaxLaw(SizeLaw[LloydMaxQuantizer]):
    """Codes and levels."""

    def sections(
        self, params: LloydMaxQuantizer, shape: Shape, context: Context
    ) -> list[SectionSpec]:
        """The codes of a latent [p, q], and the levels [2^bits]."""
        return [
            SectionSpec(role="codes", dtype=f"b{params.bits}", shape=shape, term="codes"),
            SectionSpec(
                role="levels",
                dtype="f16",
                shape=(2**params.bits,),
                term="codebook",
                shared=context.shared,
            ),
        ]

    def paper_bits(
        self, params: LloydMaxQuantizer, shape: Shape, context: Context
    ) -> dict[str, Fraction]:
        """b for each weight, and 16 for each level."""
        return {
            "codes": Fraction(params.bits * shape[0] * shape[1]),
            "codebook": Fraction(16 * 2**params.bits),
        }


SIZE_LAW = LloydMaxLaw()
