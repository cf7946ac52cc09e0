"""The plan of one matrix: a kind for each stage, and which of them fit together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from reallm_compiler.stages.autoencoder import Hnerv, Identity
from reallm_compiler.stages.base import Stage, as_tuple
from reallm_compiler.stages.permutation import NearestPermutation, NoPermutation
from reallm_compiler.stages.quantizer import (
    NoQuantizer,
    NormalFloatQuantizer,
    TrellisQuantizer,
    UniformQuantizer,
    VectorQuantizer,
)
from reallm_compiler.stages.residual import LowRank, NoResidual
from reallm_compiler.stages.scales import AbsmaxScales, MinmaxScales, NoScales, RmsScales
from reallm_compiler.stages.transform import Hadamard, Normalize

Residual = Annotated[NoResidual | LowRank, Field(discriminator="kind")]
Transform = Annotated[Normalize | Hadamard, Field(discriminator="kind")]
Autoencoder = Annotated[Identity | Hnerv, Field(discriminator="kind")]
Permutation = Annotated[NoPermutation | NearestPermutation, Field(discriminator="kind")]
Scales = Annotated[NoScales | RmsScales | AbsmaxScales | MinmaxScales, Field(discriminator="kind")]
Quantizer = Annotated[
    NoQuantizer | UniformQuantizer | NormalFloatQuantizer | VectorQuantizer | TrellisQuantizer,
    Field(discriminator="kind"),
]

SHARED_KINDS = {"quantizer": ("vq", "trellis"), "autoencoder": ("hnerv",)}
"""The kinds, by stage, that learn something that the matrices of a group can store once."""


class MatrixPlan(Stage):
    """Everything that decides how one matrix is stored, and so how large it is."""

    residual: Residual = NoResidual()
    transform: Annotated[
        tuple[Transform, ...],
        BeforeValidator(as_tuple, json_schema_input_type=list[Transform]),
    ] = Field(default=(), description="Transforms of the matrix before it is encoded, in order.")
    autoencoder: Autoencoder = Identity()
    permutation: Permutation = NoPermutation()
    scales: Scales = NoScales()
    quantizer: Quantizer = NoQuantizer()
    rounding: Literal["nearest"] = "nearest"
    dora: bool = Field(
        default=False, description="Store a float16 magnitude for each output row (DoRA)."
    )
    share: str | None = Field(
        default=None,
        min_length=1,
        description="Name of a group of matrices that store one codebook or decoder together; a "
        "group whose members have different plans divides by itself.",
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> MatrixPlan:
        if self.share is not None and not any(
            getattr(self, stage).kind in kinds for stage, kinds in SHARED_KINDS.items()
        ):
            raise ValueError(
                "`share` needs something to share: a `vq` or `trellis` quantizer or a decoder"
            )
        if self.quantizer.kind == "trellis" and self.autoencoder.kind == "hnerv":
            raise ValueError(
                "`trellis` codes are not learned while an autoencoder is trained; use `vq`"
            )
        if self.scales.kind == "minmax" and self.quantizer.kind == "normal_float":
            raise ValueError(
                "`normal_float` levels lie on [-1, 1]; use `absmax` scales, or `uniform` "
                "with `minmax`"
            )
        if self.scales.kind == "none" and self.quantizer.kind in ("uniform", "normal_float"):
            raise ValueError(
                f"`{self.quantizer.kind}` levels lie on [-1, 1] and need scales: use `absmax`"
            )
        kinds = [transform.kind for transform in self.transform]
        if len(set(kinds)) < len(kinds):
            raise ValueError("a kind of transform can stand in the list once")
        return self

    @model_validator(mode="after")
    def _trained_once(self) -> MatrixPlan:
        residual = self.residual
        if self.autoencoder.kind == "identity":
            return self
        if self.share is not None and self.autoencoder.decoder is not None:
            raise ValueError("a trained `decoder` is shared as it is: leave out `share`")
        if residual.kind == "none":
            return self
        if residual.fit == "alternating" or residual.order == "quantizer_first":
            raise ValueError(
                f"`{self.autoencoder.kind}` is trained once, on what the residual leaves: use "
                "`fit: svd` or `zero` and `order: residual_first`"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """The plan as plain data, each field written out: what an archive stores."""
        return self.model_dump(mode="json")
