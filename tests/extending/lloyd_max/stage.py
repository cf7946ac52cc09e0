"""Parameters of the quantizer `lloyd_max`, and the record that registers it."""

from typing import ClassVar, Literal

from pydantic import Field

from reallm_compiler.stages import ExternalKind, QuantizerStage


class LloydMaxQuantizer(QuantizerStage):
    """2^bits levels that are learned from the weights (Lloyd and Max)."""

    shares: ClassVar[str | None] = "a table of levels"

    kind: Literal["lloyd_max"]
    bits: int = Field(ge=1, le=8, description="Bits per weight.")
    iterations: int = Field(default=20, ge=1, le=1000, description="Lloyd iterations.")


KIND = ExternalKind(
    stage="quantizer",
    params=LloydMaxQuantizer,
    size_law="lloyd_max.storage:SIZE_LAW",
    codec="lloyd_max.codec:CODEC",
)
