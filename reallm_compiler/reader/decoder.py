"""A decoder by itself: taken out of a model's archive, for other checkpoints to use.

    extract_decoder("a.reallm", "q", "q-decoder.reallm")     the decoder of share group `q`

"Done once and for all": a recipe that names the new file as `decoder` uses it as it is for other
checkpoints and stores latents alone. Such an archive is read with the decoder's file beside it, or
named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.planning.decoders import KIND
from reallm_compiler.planning.document import blank_provenance
from reallm_compiler.progress import Progress, progress_callback
from reallm_compiler.publish import check_file, new_file, refuse_inputs
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.storage import hnerv_structure as structure
from reallm_formats import Writer, layout, names
from reallm_formats.kinds.decoder import section_name


def extract_decoder(
    archive: str | os.PathLike[str],
    owner: str,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the decoder of a share group, or of one matrix, to a file of its own.

    Args:
        archive: a model archive.
        owner: the group's name, or the matrix's.
        output: the new file.
        force: overwrite it if it exists.
        progress: see `reallm_compiler.progress`; counts bytes that are read and checked.

    Raises:
        SourceError: the archive has no decoder of this owner.
        OutputError: the output exists already or cannot be written.
        FormatError: the archive is damaged.
    """
    path = Path(output).absolute()
    check_file(path, force=force)
    refuse_inputs(path, archive)
    with open_archive(archive, allow_cost=True) as opened:
        owners = {
            matrix.plan.share if matrix.plan.share is not None else matrix.name: matrix
            for matrix in opened.plan.matrices
            if any(spec.term == "decoder" for spec in matrix.specs)
        }
        owner = owner if owner in owners else owner.removesuffix(".weight")
        if owner not in owners:
            raise SourceError(
                f"the archive has no decoder of `{owner}`",
                location=str(archive),
                hint=f"it has one of {', '.join(_first(owners))}"
                if owners
                else "none of its matrices has a trained decoder (`hnerv`) of its own",
            )
        matrix = owners[owner]
        group = matrix.plan.share
        params: Any = matrix.plan.autoencoder  # the one kind that has a decoder
        width = structure.decoder_width(params, matrix.shape, shared=group is not None)
        specs = structure.decoder_sections(params, width, shared=group is not None)
        name = names.share_section if group is not None else names.matrix_section
        report = progress_callback(progress, "decoder", "bytes")
        total = sum(spec.nbytes for spec in specs)
        data: dict[str, bytes] = {}
        for spec in specs:
            report(sum(map(len, data.values())), total)
            data[section_name(spec.role)] = bytes(opened.section(name(owner, spec.role)))
        report(total, total)
        stored = opened.manifest.document["provenance"]
    document = {
        "structure": structure.structure(params, width),
        "provenance": {key: stored.get(key, blank) for key, blank in blank_provenance().items()},
    }
    file_layout = layout(
        kind=KIND,
        features=[],
        document=document,
        sections=[(section_name(spec.role), spec.dtype, spec.shape) for spec in specs],
    )
    with new_file(path, force=force) as partial, Writer.create(partial, file_layout) as writer:
        digests = {role: writer.write(role, content) for role, content in data.items()}
        writer.finish(document, digests)
    return path


def _first(owners: Iterable[str], count: int = 4) -> list[str]:
    """The first owners as words, and how many more there are."""
    names = [f"`{name}`" for name in owners]
    more = [f"{len(names) - count} more"] if len(names) > count else []
    return names[:count] + more
