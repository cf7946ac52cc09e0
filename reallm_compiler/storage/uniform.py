"""Size law of the quantizer `uniform`: one code of `bits` bits per weight."""

from __future__ import annotations

from typing import ClassVar

from reallm_compiler.stages import UniformQuantizer
from reallm_compiler.storage.scalar import ScalarLaw


class UniformLaw(ScalarLaw[UniformQuantizer]):
    """One code per weight."""

    even: ClassVar[bool] = True
