"""Trained decoders that a recipe names: by their files there, by their digests in the plan.

The file, not the recipe, says how the decoder is built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reallm_compiler.errors import FormatError, Problem, RecipeError
from reallm_compiler.planning.decoders import KIND, PREFIX, DecoderFile, open_decoder_file
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.recipe import Decision
from reallm_compiler.stages import AutoencoderStage, MatrixPlan
from reallm_compiler.storage.hnerv_structure import STRUCTURE
from reallm_compiler.storage.matrix import LayoutTable


def resolve_decoders(
    matrices: list[PlannedMatrix], decisions: Mapping[str, Decision], folder: Path
) -> tuple[list[PlannedMatrix], dict[str, DecoderFile]]:
    """Matrices whose plans name decoders by their digests, and the files, by path as written.

    Args:
        matrices: as the recipe plans them.
        decisions: of the recipe, by matrix.
        folder: what paths are relative to.

    Raises:
        RecipeError: a file is missing or no decoder, or the recipe says how it is built.
    """
    files: dict[str, DecoderFile] = {}
    plans: dict[tuple[int, str], MatrixPlan] = {}
    layouts = LayoutTable()
    resolved = []
    problems: dict[str, Problem] = {}
    for matrix in matrices:
        params = matrix.plan.autoencoder
        written = params.reused
        if written is None:
            resolved.append(matrix)
            continue
        at = {source.path: source for source in decisions[matrix.name].trace}
        try:
            if written not in files:
                files[written] = _found(written, folder)
            stage = _built(params, files[written])
        except _UnfitError as error:
            problem = at[f"autoencoder.{error.field}"].problem(str(error))
            problems.setdefault(str(problem), problem)
            continue
        plan = plans.setdefault(
            (id(matrix.plan), written), matrix.plan.model_copy(update={"autoencoder": stage})
        )
        layout = layouts.layout_of(plan, matrix.shape, matrix.dtype)
        resolved.append(replace(matrix, layout=layout))
    if problems:
        raise RecipeError(list(problems.values()))
    return resolved, files


def with_digests(document: Any, files: Mapping[str, DecoderFile]) -> Any:  # noqa: ANN401
    """A recipe's document with the digests of decoders instead of their paths."""
    if not files:
        return document
    if isinstance(document, Mapping):
        return {
            key: files[value].digest
            if key == KIND and isinstance(value, str) and value in files
            else with_digests(value, files)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [with_digests(item, files) for item in document]
    return document


class _UnfitError(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _found(written: str, folder: Path) -> DecoderFile:
    if written.startswith(PREFIX):
        raise _UnfitError(KIND, "name the decoder by its file here, not by its digest")
    try:
        return open_decoder_file(folder / os.path.expanduser(written))
    except (FormatError, OSError) as error:
        raise _UnfitError(KIND, f"`{written}` is not a decoder: {error}") from error


def _built(params: AutoencoderStage, file: DecoderFile) -> AutoencoderStage:
    """The stage with the structure of the file's decoder."""
    for field in STRUCTURE:
        if field in params.model_fields_set:
            raise _UnfitError(
                field, f"leave out `{field}`: a trained decoder has its own structure"
            )
    plain = params.model_dump(mode="json", exclude={*STRUCTURE, "decoder_params", KIND})
    return type(params).model_validate({**plain, **file.structure, KIND: file.digest})
