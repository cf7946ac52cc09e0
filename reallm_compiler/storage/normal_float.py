"""Size law of the quantizer `normal_float`: one code of `bits` bits per weight."""

from __future__ import annotations

from reallm_compiler.stages import NormalFloatQuantizer
from reallm_compiler.storage.scalar import ScalarLaw


class NormalFloatLaw(ScalarLaw[NormalFloatQuantizer]):
    """One code per weight."""
