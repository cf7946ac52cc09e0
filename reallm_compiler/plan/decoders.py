"""Trained decoders that a recipe uses as they are: archives of kind `decoder`.

A recipe names the file; the plan, and so the archive, names it by its digest, which stands for
every byte of it. How the decoder is built is the file's word, not the recipe's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reallm_compiler.errors import FormatError, Problem, RecipeError, SourceError
from reallm_compiler.layouts.hnerv import STRUCTURE
from reallm_compiler.plan.model import PlannedMatrix
from reallm_compiler.recipe import Decision
from reallm_compiler.recipe.stages import Hnerv
from reallm_formats import Archive

PREFIX = "sha256:"
KIND = "decoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderFile:
    """A file that holds a decoder.

    Attributes:
        path: where it is.
        digest: its digest, as a plan names it.
        structure: how the decoder is built, as plain data.
        bytes: its length.
    """

    path: Path
    digest: str
    structure: Mapping[str, Any]
    bytes: int


def open_decoder_file(path: Path) -> DecoderFile:
    """What a decoder's file says of itself.

    Raises:
        FormatError: it is no archive of kind `decoder`.
    """
    with Archive.open(path) as archive:
        if archive.kind != KIND:
            raise FormatError(
                "M3", f"this archive holds a `{archive.kind}`, not a `{KIND}`", location=str(path)
            )
        return DecoderFile(
            path=path.absolute(),
            digest=PREFIX + archive.digest.hex(),
            structure=dict(archive.document["structure"]),
            bytes=archive.file_bytes,
        )


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
    resolved = []
    problems: dict[str, Problem] = {}
    for matrix in matrices:
        params = matrix.plan.autoencoder
        if not isinstance(params, Hnerv) or params.decoder is None:
            resolved.append(matrix)
            continue
        at = {source.path: source for source in decisions[matrix.name].trace}
        try:
            written = params.decoder
            if written not in files:
                files[written] = _found(written, folder)
            stage = _built(params, files[written])
        except _UnfitError as error:
            source = at[f"autoencoder.{error.field}"]
            problem = Problem(location=source.location, path=source.origin, message=str(error))
            problems.setdefault(str(problem), problem)
            continue
        plan = matrix.plan.model_copy(update={"autoencoder": stage})
        resolved.append(replace(matrix, plan=plan))
    if problems:
        raise RecipeError(list(problems.values()))
    return resolved, files


def with_digests(document: Any, files: Mapping[str, DecoderFile]) -> Any:  # noqa: ANN401
    """A recipe's document with the digests of decoders in the place of their paths."""
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


def find_decoder(digest: str, archive: Path, given: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """The file of the decoder that an archive needs: one of those given, or one beside it.

    Raises:
        SourceError: there is none.
        FormatError: a file that was given is no decoder.
    """
    for path in map(Path, given):
        if open_decoder_file(path).digest == digest:
            return path
    for path in _beside(archive):
        try:
            if open_decoder_file(path).digest == digest:
                return path
        except (FormatError, OSError):
            continue  # a file of another kind, or a broken one, is not what is looked for
    raise SourceError(
        f"the decoder that this archive was made with is not here: {digest}",
        location=str(archive),
        note=f"an archive of kind `{KIND}` with the digest {digest.removeprefix(PREFIX)[:16]}...",
        hint="put its file into the archive's folder",
    )


def _beside(archive: Path) -> Iterator[Path]:
    """Archives in the folder of `archive`, itself left out, in the order of names."""
    folder = archive.absolute().parent
    for path in sorted(folder.glob("*.reallm")):
        if path.name != archive.name:
            yield path


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
        raise _UnfitError(KIND, f"`{written}` is no decoder: {error}") from error


def _built(params: Hnerv, file: DecoderFile) -> Hnerv:
    """The stage with the structure of the file's decoder."""
    for field in STRUCTURE:
        if field in params.model_fields_set:
            raise _UnfitError(
                field, f"leave out `{field}`: a trained decoder says itself how it is built"
            )
    plain = params.model_dump(mode="json", exclude={*STRUCTURE, "decoder_params", KIND})
    build: Callable[[Any], Hnerv] = Hnerv.model_validate
    try:
        return build({**plain, **file.structure, KIND: file.digest})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"the decoder's structure is not one that this version knows: {first['msg']}"
        raise _UnfitError(KIND, message) from error
