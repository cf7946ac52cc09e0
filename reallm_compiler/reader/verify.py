"""Is an archive intact? Every digest, every padding byte, every rule, every meaning.

The structure is the container's: header, manifest, sections, padding. The meaning is the
compiler's: plans that are known and fit their sections, names that are those of their tensors,
values that can be decoded, and a cost that a file of this length may ask for. Nothing is decoded,
so the time is that of reading the file a few times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from reallm_compiler.errors import FormatError
from reallm_compiler.planning.cost import check_cost
from reallm_compiler.planning.decoders import decoder_stage
from reallm_compiler.planning.document import from_manifest
from reallm_compiler.progress import OnProgress, Progress, progress_callback
from reallm_compiler.storage import adapter as adapter_storage
from reallm_compiler.storage import statistics as statistics_storage
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.hnerv_structure import decoder_sections, decoder_width
from reallm_formats import Archive, Damage, names
from reallm_formats.kinds.decoder import section_name

Specs = Iterable[tuple[str, SectionSpec]]
"""Sections by name, with their specs."""


def verify(
    path: str | os.PathLike[str],
    *,
    quick: bool = False,
    allow_cost: bool = False,
    progress: Progress | None = None,
) -> list[Damage]:
    """Everything that is damaged in an archive; empty when it is intact.

    The structure is checked first: when it is broken, sections cannot be found, and the one
    broken rule is the answer; so it is for a path that is missing, a folder or no archive.

    Args:
        path: an archive of any kind.
        quick: check the structure alone: that the file is the one that was written.
        allow_cost: let decoding cost what it will; see `open_archive`.
        progress: see `reallm_compiler.progress`; counts bytes of sections.
    """
    try:
        archive = Archive.open(path)
    except FormatError as error:
        return [_damage(error, path)]
    with archive:
        damages = list(
            archive.verify(_counted(archive, progress_callback(progress, "verify", "bytes")))
        )
        if not quick:
            try:
                specs = _SPECS[archive.kind](archive, allow_cost)
                damages += _without_meaning(archive, specs)
            except FormatError as error:
                damages.append(_damage(error, path))
        return damages


def _model(archive: Archive, allow_cost: bool) -> Specs:
    """The sections of a model, once its document is found to be a plan."""
    plan = from_manifest(archive.manifest, archive.layout)
    if not allow_cost:
        check_cost(plan)
    found = ((matrix.section_name(spec), spec) for matrix in plan.matrices for spec in matrix.specs)
    return dict(found).items()  # what a group shares is there once


def _adapter(archive: Archive, allow_cost: bool) -> Specs:
    document = archive.adapter
    rows = [
        (names.matrix_section(row.name, spec.role), spec)
        for row in document.matrices
        for spec in adapter_storage.sections(row)
    ]
    return rows + [(row[0], adapter_storage.replaced_section(row)) for row in document.replaced]


def _decoder(archive: Archive, allow_cost: bool) -> Specs:
    stage = decoder_stage(archive)
    specs = decoder_sections(stage, decoder_width(stage, (1, 1), shared=True), shared=True)
    return [(section_name(spec.role), spec) for spec in specs]


def _statistics(archive: Archive, allow_cost: bool) -> Specs:
    return [
        (names.matrix_section(row.name, spec.role), spec)
        for row in archive.statistics.matrices
        for spec in statistics_storage.sections(row)
    ]


_SPECS: dict[str, Callable[[Archive, bool], Specs]] = {
    "model": _model,
    "adapter": _adapter,
    "decoder": _decoder,
    "statistics": _statistics,
}
"""By kind of archive: checks the document, and lists the sections whose values have a rule."""


def _without_meaning(archive: Archive, specs: Specs) -> Iterator[Damage]:
    """Whole sections with values that break their rule (P5)."""
    for name, spec in specs:
        try:
            data = archive.read(name)
        except FormatError:
            continue  # damaged, which was found before
        problem = spec.values.problem(data, spec.dtype, spec.shape)
        if problem is not None:
            yield Damage(rule="P5", location=archive.sections[name].location, message=problem)


def _counted(archive: Archive, count: OnProgress) -> Callable[[int], None]:
    """A function that calls `count` with the sum of all parts so far."""
    total = archive.layout.section_bytes
    done = 0

    def report(part: int) -> None:
        nonlocal done
        done += part
        count(done, total)

    return report


def _damage(error: FormatError, path: str | os.PathLike[str]) -> Damage:
    return Damage(rule=error.rule, location=error.location or str(path), message=error.message)
