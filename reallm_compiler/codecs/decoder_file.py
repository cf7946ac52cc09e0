"""The sections of a decoder that stands in an archive of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reallm_compiler.codecs.sections import Sections, read_section
from reallm_compiler.errors import FormatError
from reallm_compiler.storage.base import SectionSpec
from reallm_formats import Archive
from reallm_formats.kinds.decoder import section_name


def read_decoder(path: Path, digest: str, specs: Sequence[SectionSpec]) -> Sections:
    """The decoder's section tensors by role, on the CPU.

    Args:
        path: an archive of kind `decoder`.
        digest: what the archive must be, `sha256:` and hex.
        specs: the sections that the plan asks for.

    Raises:
        FormatError: it is another archive, or is damaged.
    """
    with Archive.open(path) as archive:
        if f"sha256:{archive.digest.hex()}" != digest:
            raise FormatError("E1", "this is another decoder than planned", location=str(path))
        return {
            spec.role: read_section(archive, section_name(spec.role), spec).clone()
            for spec in specs
        }
