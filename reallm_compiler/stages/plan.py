"""The plan of one matrix: a kind for each stage, and which of them fit together."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from reallm_compiler.stages.autoencoder import AutoencoderStage, Identity
from reallm_compiler.stages.base import Stage, as_tuple
from reallm_compiler.stages.one_kind import OneKindOf
from reallm_compiler.stages.permutation import NoPermutation, PermutationStage
from reallm_compiler.stages.quantizer import NoQuantizer, QuantizerStage
from reallm_compiler.stages.registry import kind_name, kinds
from reallm_compiler.stages.residual import ResidualStage
from reallm_compiler.stages.rounding import NearestRounding, RoundingStage
from reallm_compiler.stages.scales import NoScales, ScalesStage
from reallm_compiler.stages.transform import TransformStage


def _as_list(value: object) -> object:
    """A single kind as the list of it."""
    return as_tuple(value) if isinstance(value, list | tuple) else (value,)


def _without_none(stages: tuple[ResidualStage, ...]) -> tuple[ResidualStage, ...]:
    """The residuals that keep something: nothing is one way to write no residual."""
    return tuple(stage for stage in stages if stage.stored)


class MatrixPlan(Stage):
    """Everything that decides how one matrix is stored, and so how large it is."""

    residual: Annotated[
        tuple[Annotated[ResidualStage, OneKindOf("residual")], ...],
        BeforeValidator(
            _as_list,
            json_schema_input_type=Annotated[ResidualStage, OneKindOf("residual")]
            | list[Annotated[ResidualStage, OneKindOf("residual")]],
        ),
        AfterValidator(_without_none),
    ] = Field(default=(), description="What is kept in high precision: one kind, or a list.")
    transform: Annotated[
        tuple[Annotated[TransformStage, OneKindOf("transform")], ...],
        BeforeValidator(
            as_tuple,
            json_schema_input_type=list[Annotated[TransformStage, OneKindOf("transform")]],
        ),
    ] = Field(default=(), description="Transforms of the matrix before it is encoded, in order.")
    autoencoder: Annotated[AutoencoderStage, OneKindOf("autoencoder")] = Identity()
    permutation: Annotated[PermutationStage, OneKindOf("permutation")] = NoPermutation()
    scales: Annotated[ScalesStage, OneKindOf("scales")] = NoScales()
    quantizer: Annotated[QuantizerStage, OneKindOf("quantizer")] = NoQuantizer()
    rounding: Annotated[RoundingStage, OneKindOf("rounding")] = NearestRounding()
    dora: bool = Field(
        default=False, description="Store a float16 gain for each output row (DoRA)."
    )
    share: str | None = Field(
        default=None,
        min_length=1,
        description="Name of a group of matrices that store one codebook or decoder together; a "
        "group whose members have different plans divides by itself.",
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> MatrixPlan:
        quantizer, scales = self.quantizer, self.scales
        if self.share is not None and not (quantizer.learns_tables or self.autoencoder.shares):
            raise ValueError(
                "`share` needs something to share: "
                f"{_with_shares('quantizer')} quantizer or a decoder"
            )
        if self.autoencoder.trained and not quantizer.codes_latents:
            raise ValueError(
                f"`{_name(quantizer)}` codes are not learned while an autoencoder is trained; "
                "use `vq`"
            )
        if scales.range not in quantizer.ranges:
            if scales.range == "free":
                raise ValueError(
                    f"`{_name(quantizer)}` levels lie on [-1, 1] and need scales: use `absmax`"
                )
            raise ValueError(
                f"`{_name(quantizer)}` levels do not lie where `{_name(scales)}` scales put the "
                f"weights; use `absmax` scales, or `uniform` with `{_name(scales)}`"
            )
        if scales.searched and not quantizer.by_rows:
            raise ValueError(
                f"`clip` is searched with the levels, and those of `{_name(quantizer)}` are not "
                "known before: use `clip: none`, or a quantizer such as `uniform`"
            )
        if (refused := scales.refusal(quantizer.rate)) is not None:
            raise ValueError(refused)
        if self.rounding.recodes and not quantizer.recodes:
            raise ValueError(
                f"the codes of `{_name(quantizer)}` are chosen together, and `sweeps` of the "
                "rounding change some of them: leave these out"
            )
        rows, together = self.permutation.rows_in_order, quantizer.rows_together
        if not self.rounding.alone and isinstance(rows, int) and rows % together:
            raise ValueError(
                f"errors are carried along rows, {together} at a time as the vectors lie, and "
                f"`rows: {rows}` of the permutation gives rows of one vector different orders: "
                f"use a multiple of {together}, or `rows: all`"
            )
        for name, stages in (("residual", self.residual), ("transform", self.transform)):
            if len({type(stage) for stage in stages}) < len(stages):
                raise ValueError(f"a kind of {name} can stand in the list once")
        if sum(stage.factored for stage in self.residual) > 1:
            raise ValueError("at most one residual of the list can be a product of factors")
        return self

    @model_validator(mode="after")
    def _statistics_fit(self) -> MatrixPlan:
        stages = [(key, getattr(self, key)) for key in ("permutation", "scales", "rounding")]
        for stage in self.transform[1:]:
            if stage.needs_statistics:
                raise ValueError(
                    f"the transform `{_name(stage)}` follows the measured inputs: it must be the "
                    "first of the list"
                )
        for key, stage in [*(("transform", stage) for stage in self.transform), *stages]:
            if not stage.needs_statistics:
                continue
            what = f"`{_name(stage)}` {key}"
            if self.autoencoder.trained:
                raise ValueError(f"{what} needs the matrix itself: use the `identity` autoencoder")
            for transform in self.transform:
                if not transform.separable:
                    raise ValueError(
                        f"{what} does not fit the transform `{_name(transform)}`, which "
                        "does not act on rows and columns separately"
                    )
            if self.share is not None and key != "rounding":
                raise ValueError(
                    f"{what} does not go with `share`: what a group stores once is learned "
                    "without statistics"
                )
        return self

    @model_validator(mode="after")
    def _trained_once(self) -> MatrixPlan:
        if not self.autoencoder.trained:
            return self
        if self.share is not None and self.autoencoder.reused is not None:
            raise ValueError("a trained `decoder` is shared as it is: leave out `share`")
        if any(stage.rounds > 1 or not stage.first for stage in self.residual):
            raise ValueError(
                f"`{_name(self.autoencoder)}` is trained once, on what the residual leaves: use "
                "`fit: svd` or `zero` and `order: residual_first`"
            )
        return self

    @property
    def factors(self) -> ResidualStage | None:
        """The residual whose factors tuning changes; None without one."""
        return next((stage for stage in self.residual if stage.factored), None)

    def with_factors(self, factors: ResidualStage | None, *, dora: bool) -> MatrixPlan:
        """The same plan with other factors, or none, and with or without gains of rows."""
        fixed = tuple(stage for stage in self.residual if not stage.factored)
        others = () if factors is None else (factors,)
        return self.model_copy(update={"residual": fixed + others, "dora": dora})

    @property
    def folded(self) -> TransformStage | None:
        """The transform that is put into what makes the matrix's input; None without one."""
        return next((stage for stage in self.transform if stage.folded), None)

    def without_folded(self) -> MatrixPlan:
        """The plan of the matrix as it is coded: what is folded has been done before."""
        left = tuple(stage for stage in self.transform if not stage.folded)
        return self.model_copy(update={"transform": left})

    @property
    def needs_statistics(self) -> bool:
        """Whether a stage works in the metric of measured statistics."""
        return bool(self.stages_with_statistics)

    @property
    def stages_with_statistics(self) -> tuple[str, ...]:
        """The stages that work in the metric of measured statistics, by their keys."""
        found = []
        for key in type(self).model_fields:
            value = getattr(self, key)
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, Stage) and part.needs_statistics for part in parts):
                found.append(key)
        return tuple(found)

    def plain(self) -> dict[str, Any]:
        """The plan as plain data, each field written out: what an archive stores."""
        return self.model_dump(mode="json")


SHARING = ("quantizer", "autoencoder")
"""Stages whose kinds may learn something that the matrices of a group can store once."""


def shares(stage: str, kind: object) -> bool:
    """Whether a kind of one of `SHARING` learns something that a group can store once."""
    params: Any = kinds(stage).get(kind) if isinstance(kind, str) else None
    return params is not None and params.shares is not None


def _name(stage: Stage) -> str:
    return kind_name(type(stage))


def _with_shares(stage: str) -> str:
    """The kinds of a stage that share something, as `a `vq` or `trellis``."""
    names = [
        f"`{name}`"
        for name, params in kinds(stage).items()
        if issubclass(params, QuantizerStage) and params.shares
    ]
    return "a " + " or ".join(names)
