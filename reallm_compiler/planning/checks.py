"""What a model archive's document must say to be a plan, beyond what the container asks.

The rules are those of the compiler in SPEC.md, P1, P2 and P7 here; `document` has P3 and P4, the
value rules P5, and `cost` P6. All are cheap: they look at the document and not at any section.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reallm_compiler.checkpoint.carried import is_carried
from reallm_compiler.checkpoint.linear import matrix_name
from reallm_compiler.errors import FormatError
from reallm_compiler.planning.parts import PlannedFile, PlannedMatrix, PlannedTensor
from reallm_compiler.stages import MatrixPlan

RESERVED = "__metadata__"
"""The name under which safetensors keeps what is no tensor."""


def check_methods(methods: Sequence[MatrixPlan], matrices: Sequence[PlannedMatrix]) -> None:
    """Each plan is used, and fits the matrices that it is used for (P1).

    Raises:
        FormatError: the broken rule and its location.
    """
    used = {id(matrix.plan) for matrix in matrices}
    for index, plan in enumerate(methods):
        if id(plan) not in used:
            raise FormatError(
                "P1", "no matrix uses this plan", location=f"manifest: document.methods[{index}]"
            )
    for index, matrix in enumerate(matrices):
        refused = matrix.layout.refusal
        if refused is not None:
            raise FormatError("P1", refused[1], location=f"manifest: document.matrices[{index}]")


def check_names(matrices: Sequence[PlannedMatrix], tensors: Iterable[PlannedTensor]) -> None:
    """Each matrix has the name of its tensor (P2).

    Raises:
        FormatError: the broken rule and its location.
    """
    for index, matrix in enumerate(matrices):
        part = "" if matrix.index is None else f".{matrix.index}"
        wanted = matrix_name(matrix.tensor) + part
        if matrix.name != wanted:
            raise FormatError(
                "P2",
                f"the matrix of `{matrix.tensor}` is called `{wanted}`, not `{matrix.name}`",
                location=f"manifest: document.matrices[{index}].name",
            )
    for name in (*(matrix.tensor for matrix in matrices), *(tensor.name for tensor in tensors)):
        if name == RESERVED:
            raise FormatError(
                "P2", f"`{RESERVED}` is not a tensor name", location="manifest: document"
            )


def check_files(files: Iterable[PlannedFile]) -> None:
    """Each embedded file is one that a compile embeds: no weights, no code (P7).

    Raises:
        FormatError: the broken rule and its location.
    """
    for file in files:
        if not is_carried(file.path):
            raise FormatError(
                "P7",
                f"`{file.path}` is not a config or tokenizer file",
                location=f"section file:{file.path}",
            )
