"""Parameters of what is done to the whole model before any matrix is coded."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from reallm_compiler.stages.base import Stage, as_tuple


class FoldNorms(Stage):
    """The gains of each norm multiplied into the columns of the matrices that read its output.

    The norm is left with gains of 1. A head that is tied to the embedding is untied, since the last
    norm is folded into the head alone.
    """

    kind: Literal["fold_norms"]


class Rotate(Stage):
    """Hidden states rotated by random orthogonal matrices, so that none of them has outliers.

    QuaRot and SpinQuant: every matrix that reads the residual stream is multiplied by Q on the
    right, every one that writes it by Q^T on the left (R1), and the values of each attention head
    likewise (R2). The model computes what it did before; nothing is left to do when it runs.
    """

    kind: Literal["rotate"]
    stream: bool = Field(default=True, description="Rotate the residual stream (R1).")
    heads: bool = Field(
        default=True, description="Rotate the values inside each attention head (R2)."
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the rotations.")


PrepareStage: TypeAlias = FoldNorms | Rotate

PREPARE_KINDS: tuple[type[Stage], ...] = (FoldNorms, Rotate)
"""The kinds of `prepare`, in the order in which they may stand."""


def _in_order(stages: tuple[PrepareStage, ...]) -> tuple[PrepareStage, ...]:
    names = [stage.kind for stage in stages]
    if len(set(names)) < len(names):
        raise ValueError("a kind of `prepare` can stand in the list once")
    if "rotate" in names and names[0] != "fold_norms":
        raise ValueError(
            "`rotate` needs `fold_norms` before it: the gains of a norm do not commute with a "
            "rotation"
        )
    return stages


Prepare = Annotated[
    tuple[Annotated[PrepareStage, Field(discriminator="kind")], ...],
    BeforeValidator(
        as_tuple,
        json_schema_input_type=list[Annotated[PrepareStage, Field(discriminator="kind")]],
    ),
    AfterValidator(_in_order),
]
