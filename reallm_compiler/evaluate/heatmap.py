"""One matrix of an archive beside the original, as a picture (the paper's Figure 1)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from reallm_compiler.checkpoint import open_source
from reallm_compiler.errors import EvaluationError, SourceError
from reallm_compiler.evaluate.pictures import check_matplotlib, check_picture, draw_heatmap
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.folding import recipe_folds
from reallm_compiler.prepare import changed_by, prepare_model, prepare_stages
from reallm_compiler.reader.archive import open_archive

SAME = 1e-3
"""Relative difference up to which two errors are the same one, measured in two types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heatmap:
    """A picture that was drawn.

    Attributes:
        path: the file.
        relative_error: ||W - W^|| / ||W|| of what was drawn.
        stored_error: what the archive says, measured when it was made.
    """

    path: Path
    relative_error: float
    stored_error: float

    @property
    def same_model(self) -> bool:
        """Whether the errors agree, as they do for the model that the archive was made of."""
        return same_error(self.relative_error, self.stored_error)


def same_error(measured: float, stored: float) -> bool:
    """Whether an error is the one that an archive states, but for the types it was measured in."""
    return abs(measured - stored) <= SAME * max(1e-3, stored)


def heatmap(
    archive: str | os.PathLike[str],
    name: str,
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
) -> Heatmap:
    """Draw original, reconstruction and error of one matrix.

    Args:
        archive: a model archive.
        name: one of its coded matrices.
        output: the PNG or SVG file to write.
        model: the checkpoint that the archive was made of.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.

    Raises:
        EvaluationError: matplotlib is not installed, or the matrix is not coded.
        OutputError: the output cannot be a picture.
        FormatError, SourceError: the archive or the checkpoint cannot be read.
    """
    check_picture(output)
    check_matplotlib()
    short = name.removesuffix(".weight")
    with open_archive(archive, decoder=decoder, allow_cost=allow_cost) as opened:
        if short not in opened.names:
            raise EvaluationError(
                f"the archive codes no matrix `{short}`",
                location=str(archive),
                hint=did_you_mean(nearest(short, opened.names, 1)),
            )
        decoded = opened.matrix(short, dtype=torch.float32)
        stored = opened.errors[short]
        prepared, folds = prepare_stages(opened.recipe), recipe_folds(opened.recipe)
    inventory = prepare_model(open_source(model), prepared)
    if folds and f"{short}.weight" in changed_by(inventory):
        raise EvaluationError(
            f"`{short}` may be multiplied by factors that the archive does not hold",
            location=str(archive),
            note="its recipe folds them into what makes the input (`fold`), so the original's "
            "matrix cannot be compared",
            hint="draw a matrix of an archive whose recipe stores the factors",
        )
    fact = next((fact for fact in inventory.matrices() if fact.name == short), None)
    if fact is None or not inventory.complete:
        raise SourceError(
            f"the model has no matrix `{short}`" if fact is None else "this model has no weights",
            location=str(model),
            hint="give the checkpoint that the archive was made of",
        )
    original = Weights(inventory).matrix(fact.tensor, fact.index, transposed=fact.transposed)
    error = draw_heatmap(output, short, original, decoded)
    return Heatmap(path=Path(output), relative_error=error, stored_error=stored)
