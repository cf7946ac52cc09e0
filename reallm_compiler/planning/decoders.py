"""Files of trained decoders that archives use as they are: archives of kind `decoder`.

A plan, and so an archive, names a decoder by the digest of its file, which stands for every byte of
it. The file says how the decoder is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.planning.model import Plan
from reallm_compiler.stages import Hnerv
from reallm_compiler.storage.hnerv_structure import STRUCTURE, decoder_sections, decoder_width
from reallm_formats import Archive
from reallm_formats.header import parse_header
from reallm_formats.kinds.decoder import section_name
from reallm_formats.v1 import HEADER_BYTES

PREFIX = "sha256:"
KIND = "decoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderFile:
    """A file that holds a decoder.

    Attributes:
        path: where it is.
        digest: its digest, as a plan names it.
        structure: how the decoder is built, as plain data.
        stage: the same as a stage, with a width.
        nbytes: its length.
    """

    path: Path
    digest: str
    structure: Mapping[str, Any]
    stage: Hnerv
    nbytes: int


def open_decoder_file(path: Path) -> DecoderFile:
    """What a decoder's file says of itself.

    Raises:
        FormatError: it is no archive of kind `decoder`, or its sections are not those of the
            structure.
    """
    with Archive.open(path) as archive:
        if archive.kind != KIND:
            raise FormatError(
                "M3", f"this archive holds a `{archive.kind}`, not a `{KIND}`", location=str(path)
            )
        try:
            stage = decoder_stage(archive)
        except FormatError as error:
            raise error.inside(str(path)) from None
        return DecoderFile(
            path=path.absolute(),
            digest=PREFIX + archive.digest.hex(),
            structure=dict(archive.document["structure"]),
            stage=stage,
            nbytes=archive.file_bytes,
        )


def decoder_stage(archive: Archive) -> Hnerv:
    """How the decoder in an archive is built, its sections checked by the size law.

    Raises:
        FormatError: the structure is not known here (E1), or asks for other sections (E2).
    """
    plain = archive.decoder.structure
    where = "manifest: document.structure"
    if set(plain) != set(STRUCTURE):
        odd = sorted(set(plain) ^ set(STRUCTURE))[0]
        raise FormatError("E1", f"`{odd}` is missing here, or not known", location=where)
    build: Callable[[Any], Hnerv] = Hnerv.model_validate
    try:
        stage = build({"kind": "hnerv", **plain})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise FormatError(
            "E1",
            f"the decoder's structure is not one that this version knows: {first['msg']}",
            location=f"{where}.{at}" if at else where,
        ) from error
    asked = decoder_sections(stage, decoder_width(stage, (1, 1), shared=True), shared=True)
    for spec, entry in zip(asked, archive.manifest.sections, strict=True):
        if (spec.dtype, spec.shape) != (entry.dtype, entry.shape):
            raise FormatError(
                "E2",
                f"the structure asks for {section_name(spec.role)} as {spec.dtype} "
                f"{list(spec.shape)}, and {entry.dtype} {list(entry.shape)} is stored",
                location="manifest: sections",
            )
    return stage


def find_decoder(digest: str, archive: Path, given: Path | None = None) -> DecoderFile:
    """The decoder that an archive needs.

    Args:
        digest: of the decoder, as the archive's plan names it.
        archive: the archive's file.
        given: where to look: a file, or a folder of files; the archive's own folder when None.

    Raises:
        SourceError: it is not there, the file is another decoder, or the folder cannot be read.
        FormatError: the file is no decoder, or a broken one.
    """
    wanted = digest.removeprefix(PREFIX)
    if given is not None and not given.is_dir():
        if not given.exists():
            raise SourceError("there is no such decoder", location=str(given), hint=_EXTRACT)
        file = open_decoder_file(given)
        if file.digest != digest:
            raise SourceError(
                "this is not the decoder that the archive was made with",
                location=str(given),
                note=f"`{archive}` needs {wanted}, and this is {file.digest.removeprefix(PREFIX)}",
                hint="give the file with the digest that is needed, or a folder that holds it: "
                "`reallm inspect FILE` shows the digest of a decoder",
            )
        return file
    folder = given if given is not None else archive.absolute().parent
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(
            f"the folder of decoders cannot be read: {error.strerror}",
            location=str(folder),
            note=f"the archive needs the one with the digest {wanted}",
        ) from error
    for path in paths:
        if _has_digest(path, wanted):
            return open_decoder_file(path)
    where = f"in the folder `{given}`" if given is not None else "beside the archive"
    raise SourceError(
        f"the decoder that the archive was made with is not {where}",
        location=str(archive),
        note=f"it is an archive of kind `{KIND}` with the digest {wanted}",
        hint="name its file, or the folder that holds it, with `--decoder PATH`",
    )


def used_decoders(plan: Plan) -> tuple[str, ...]:
    """Digests of the decoders that a plan uses but does not hold, each once."""
    named = (matrix.plan.autoencoder.reused for matrix in plan.matrices)
    return tuple(dict.fromkeys(digest for digest in named if digest is not None))


def find_decoders(plan: Plan, archive: Path, given: Path | None = None) -> dict[str, DecoderFile]:
    """The decoders that an archive uses but does not hold, by digest; see `find_decoder`.

    Raises:
        SourceError: one is missing, or `given` is another one, or none is needed.
        FormatError: a file is no decoder, or a broken one.
    """
    needed = used_decoders(plan)
    if given is not None and not needed:
        raise SourceError(
            "this archive needs no other file: what decodes it is inside",
            location=str(archive),
            hint="leave out `--decoder`",
        )
    return {digest: find_decoder(digest, archive, given) for digest in needed}


_EXTRACT = "`reallm decoder ARCHIVE GROUP_OR_MATRIX -o FILE` takes one out of an archive"


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a file's header has this digest (hex); what is no archive has none."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            header = parse_header(file.read(HEADER_BYTES), path.stat().st_size)
    except (FormatError, OSError):
        return False  # a file of another kind, or a broken one, is not what is looked for
    return header.digest.hex() == digest
