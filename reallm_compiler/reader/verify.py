"""Is an archive what it says it is? Every digest, every padding byte, every rule."""

from __future__ import annotations

import os
from collections.abc import Callable

from reallm_compiler.errors import FormatError
from reallm_compiler.plan.decoders import decoder_stage
from reallm_compiler.plan.document import from_manifest
from reallm_formats import Archive, Damage


def verify(
    path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
) -> list[Damage]:
    """Everything that is damaged in an archive; empty when it is intact.

    The structure is checked first: when it is broken, sections cannot be found, and the one
    broken rule is the answer; so it is for a path that is missing, a folder or no archive.

    Args:
        path: an archive of any kind.
        progress: is told how many bytes of how many, those of all sections, were checked.
    """
    try:
        archive = Archive.open(path)
    except FormatError as error:
        return [_damage(error, path)]
    with archive:
        damages = list(archive.verify(_counted(archive, progress)))
        try:
            if archive.kind == "model":
                from_manifest(archive.manifest, archive.layout)
            elif archive.kind == "decoder":
                decoder_stage(archive)
        except FormatError as error:
            damages.append(_damage(error, path))
        return damages


def _counted(
    archive: Archive, progress: Callable[[int, int], None] | None
) -> Callable[[int], None] | None:
    """What tells `progress` the sum of all parts so far."""
    if progress is None:
        return None
    total = archive.layout.section_bytes
    done = 0

    def tell(part: int) -> None:
        nonlocal done
        done += part
        progress(done, total)

    return tell


def _damage(error: FormatError, path: str | os.PathLike[str]) -> Damage:
    return Damage(rule=error.rule, location=error.location or str(path), message=error.message)
