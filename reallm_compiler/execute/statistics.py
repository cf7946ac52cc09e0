"""Measured statistics as an input of a compile: that they are there, and are those of the model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from reallm_compiler.checkpoint import Inventory, matrix_name
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CalibrateError, CompileError
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.tensors import TensorSpec
from reallm_formats import StatisticsEntry
from reallm_formats.kinds.statistics import DIAGONAL


@dataclass(frozen=True, slots=True)
class StatisticsInput:
    """A file of statistics that fits a plan.

    Attributes:
        path: the file.
        digest: of header and manifest, which names every byte of it.
    """

    path: Path
    digest: bytes

    def open(self) -> StatisticsFile:
        """The file, as it was when it was checked.

        Raises:
            CalibrateError: it is another one now.
            FormatError: it is damaged.
        """
        file = StatisticsFile(self.path)
        if file.digest != self.digest:
            file.close()
            raise CalibrateError(
                "the statistics have changed while they were used", location=str(self.path)
            )
        return file


def check_statistics(
    plan: Plan, inventory: Inventory, given: str | os.PathLike[str] | None
) -> StatisticsInput | None:
    """The statistics of a compile; None for a recipe that needs none.

    The checkpoint's tensors are read once: those of another model have the same names and shapes,
    and nothing else would show it.

    Raises:
        CompileError: the recipe needs statistics and none are given, or the other way round.
        CalibrateError: they are of another model, or lack a matrix; names it.
        FormatError: the file is damaged, or of another kind.
        SourceError: the checkpoint cannot be read.
    """
    if given is None:
        if not plan.needs_statistics:
            return None
        model = inventory.path or "MODEL"
        raise CompileError(
            "this recipe needs statistics of the model",
            hint=f"measure them with `reallm calibrate {model} --text FILE -o model.stats`, then "
            "compile with `--stats model.stats`",
        )
    if not plan.needs_statistics:
        raise CompileError(
            "statistics are given and the recipe uses none",
            location=str(given),
            hint="leave out `--stats`, or say `statistics: required` in the recipe",
        )
    path = Path(given).absolute()
    with StatisticsFile(path) as file:
        needing = {m.name: m for m in plan.matrices if m.plan.needs_statistics}
        needing |= {one.name: one for fold in plan.folds.values() for one in fold.matrices}
        check_rows(needing.values(), inventory, file)
        return StatisticsInput(path, file.digest)


def check_rows(
    matrices: Iterable[PlannedMatrix], inventory: Inventory, file: StatisticsFile
) -> None:
    """A file of statistics has those of these matrices.

    Raises:
        CalibrateError, SourceError: as of `check_statistics`.
    """
    weights = Weights(inventory)
    digests: dict[str, bytes] = {}
    for matrix in matrices:
        row = file.rows.get(original_name(matrix, weights.by_name[matrix.tensor]))
        if row is None:
            raise CalibrateError(
                f"there are no statistics of {matrix.name}",
                location=str(file.path),
                note="they are of another model, or the matrix was never multiplied by a state "
                "when they were measured",
                hint="give this matrix kinds that need none by a rule of the recipe, or measure "
                "the statistics of this model",
            )
        _check_determines(row, matrix, weights, file)
        if row.shape != matrix.shape:
            raise _other_model(
                f"the statistics of {matrix.name} are of a matrix {_shape(row.shape)}, and the "
                f"model's is {_shape(matrix.shape)}",
                file,
            )
        if matrix.tensor not in digests:
            digests[matrix.tensor] = bytes.fromhex(
                weights.digest_of(weights.by_name[matrix.tensor])
            )
        if row.sha256 != digests[matrix.tensor]:
            raise _other_model(
                f"the statistics of {matrix.name} are of other weights than the model's", file
            )


def original_name(matrix: PlannedMatrix, spec: TensorSpec) -> str:
    """The name under which the original's matrix was measured: a head may have been untied."""
    return matrix.name if spec.origin is None else matrix_name(spec.origin.tensor)


def read_statistics(
    file: StatisticsFile, matrix: PlannedMatrix, weights: Weights, device: torch.device
) -> MatrixStatistics:
    """The statistics of a matrix as it is coded; a prepared one's follow from the original's.

    Raises:
        FormatError: a section is damaged.
    """
    spec = weights.by_name[matrix.tensor]
    found = file.read(original_name(matrix, spec), device)
    if spec.origin is None:
        return found
    return weights.preparation(spec.origin).statistics(found)


def _check_determines(
    row: StatisticsEntry, matrix: PlannedMatrix, weights: Weights, file: StatisticsFile
) -> None:
    """Refuse statistics of the original from which those of a prepared matrix do not follow."""
    origin = weights.by_name[matrix.tensor].origin
    if origin is None:
        return
    why = weights.preparation(origin).lacking(
        diagonal_inputs=row.input_form == DIAGONAL, diagonal_outputs=row.output_form == DIAGONAL
    )
    if why is not None:
        raise CalibrateError(
            f"the statistics of {matrix.name} say too little of the prepared matrix",
            location=str(file.path),
            note=why,
            hint="measure them whole, with `reallm calibrate` without `--diagonal`"
            if "diagonal" in why
            else "give this matrix kinds that need no statistics by a rule of the recipe",
        )


def _other_model(message: str, file: StatisticsFile) -> CalibrateError:
    return CalibrateError(
        message,
        location=str(file.path),
        note="statistics of another model say nothing of this one",
        hint="measure this model with `reallm calibrate`",
    )


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
