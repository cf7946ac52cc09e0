"""Is an archive what it says it is? Every digest, every padding byte, every rule."""

from __future__ import annotations

import os

from reallm_compiler.errors import FormatError
from reallm_compiler.plan.document import from_manifest
from reallm_formats import Archive, Damage


def verify(path: str | os.PathLike[str]) -> list[Damage]:
    """Everything that is damaged in an archive; empty when it is intact.

    The structure is checked first: when it is broken, sections cannot be found, and the one
    broken rule is the answer; so it is for a path that is missing, a folder or no archive.
    """
    try:
        archive = Archive.open(path)
    except FormatError as error:
        return [_damage(error, path)]
    with archive:
        damages = list(archive.verify())
        if archive.kind == "model":
            try:
                from_manifest(archive.manifest, archive.layout)
            except FormatError as error:
                damages.append(_damage(error, path))
        return damages


def _damage(error: FormatError, path: str | os.PathLike[str]) -> Damage:
    return Damage(rule=error.rule, location=error.location or str(path), message=error.message)
