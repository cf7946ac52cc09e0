"""What was tuned, as a file: an adapter bound to its base, or a whole new model archive.

Both are laid out, reserved and filled like any archive and appear under their name when they are
complete. In a new model archive every section but those that were learned is copied as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs import dora, to_bytes
from reallm_compiler.codecs.residuals import low_rank
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import AdapterError
from reallm_compiler.finetune.original import Original
from reallm_compiler.planning.document import section_blocks, to_document
from reallm_compiler.planning.learnable import learnable_sections, sections_of
from reallm_compiler.planning.tuned import without_record
from reallm_compiler.progress import OnProgress
from reallm_compiler.publish import whole_file
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.storage import adapter as adapter_storage
from reallm_compiler.storage.base import DTYPES, SectionSpec
from reallm_formats import AdapterDocument, AdapterEntry, Layout, Writer, layout, names

Parts = Mapping[str, Tensor]
"""`l1`, `l2`, `gain`, `column_gain` of one matrix, as far as they are there."""


def row_of(archive: ModelArchive, name: str, parts: Parts, factors: str | None) -> AdapterEntry:
    """The row of a matrix in an adapter.

    Args:
        archive: the base.
        name: the matrix.
        parts: its tuned parts.
        factors: stored type, as the recipe's word; that of the base when None.
    """
    matrix = archive.plan.by_name[name]
    base = matrix.layout.factor_dtype or "float16"
    return AdapterEntry(
        name=name,
        shape=matrix.shape,
        rank=parts["l1"].shape[1] if "l1" in parts else 0,
        dtype=DTYPES[factors if factors is not None else base],
        gain="gain" in parts,
        column_gain="column_gain" in parts,
    )


def packed(row: AdapterEntry, parts: Parts) -> tuple[Sections, float]:
    """Section tensors of a matrix, and the error that rounding its factors brings."""
    sections: Sections = {}
    error = 0.0
    if row.rank:
        residual = adapter_storage.residual(row)
        left, right = parts["l1"].detach().cpu(), parts["l2"].detach().cpu()
        sections = low_rank.store(residual, left, right)
        error = _product_error((left, right), low_rank.decode(residual, sections, torch.float32))
    if row.gain:
        sections["gain"] = dora.stored(parts["gain"].detach().cpu())
    if row.column_gain:
        sections["column_gain"] = dora.stored(parts["column_gain"].detach().cpu())
    return sections, error


def write_adapter(
    path: Path,
    archive: ModelArchive,
    tuned: Mapping[str, Parts],
    *,
    factors: str | None,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    replaced: Mapping[str, Tensor] = MappingProxyType({}),
    force: bool = False,
) -> tuple[int, float]:
    """Write an adapter of `archive`.

    Args:
        path: the file.
        archive: its base.
        tuned: parts of each matrix.
        factors: stored type of the factors; that of the base when None.
        settings: how it was made, plain data.
        provenance: text, bytes or integers by name.
        replaced: tensors of sections of the base that it replaces, in their stored types.
        force: replace an existing file.

    Returns:
        Its length in bytes, and the largest error of rounding.

    Raises:
        OutputError: it exists already without `force`, or cannot be written.
        CodecError: a factor overflows its stored type.
    """
    rows, sections = [], {}
    for name, parts in tuned.items():
        row = row_of(archive, name, parts, factors)
        made, error = packed(row, parts)
        for spec in adapter_storage.sections(row):
            data = to_bytes(made[spec.role], spec)
            sections[names.matrix_section(name, spec.role)] = data
        rows.append(replace(row, rounding_error=error))
    others = _specs(archive, replaced)
    sections |= {name: to_bytes(replaced[name], spec) for name, spec in others.items()}
    document = AdapterDocument(
        base=archive.digest,
        matrices=tuple(rows),
        settings=settings,
        provenance=dict(provenance),
        replaced=tuple((name, spec.dtype, spec.shape) for name, spec in others.items()),
    )
    file_layout = layout(kind="adapter", document=document.plain(), sections=document.sections())
    with _new_file(path, file_layout, force=force) as writer:
        digests = {name: writer.write(name, data) for name, data in sections.items()}
        writer.finish(document.plain(), digests)
    return file_layout.file_bytes, max((row.rounding_error for row in rows), default=0.0)


def write_model(
    path: Path,
    archive: ModelArchive,
    tuned: Mapping[str, Parts],
    replaced: Mapping[str, Tensor],
    original: Original,
    *,
    record: Mapping[str, str] = MappingProxyType({}),
    advance: OnProgress | None = None,
    force: bool = False,
) -> tuple[int, float]:
    """Write a model archive with tuned parts; all other sections are those of `archive`.

    Factors get the types of the archive's plan, and relative errors are measured again; `record`
    joins the provenance, and `advance` is called with how many matrices are done. Other arguments,
    results and errors are those of `write_adapter`.
    """
    plan = archive.plan
    for name, parts in tuned.items():
        rank = parts["l1"].shape[1] if "l1" in parts else 0
        if rank != plan.by_name[name].layout.rank:
            raise AdapterError(f"the factors of {name} have another rank than its plan")
        known = {"gain"} if plan.by_name[name].plan.dora else set()
        if {"gain", "column_gain"} & set(parts) - known:
            raise AdapterError(
                f"the plan of {name} has no such gains, so a new archive cannot hold them",
                hint="write an adapter, or leave `rows` and `columns` out of what is learned",
            )
    earlier = without_record(archive.manifest.document["provenance"])
    provenance = {**earlier, "tuned_from": archive.digest, **record}
    errors = dict(archive.errors)
    file_layout = layout(
        kind="model",
        document=to_document(
            plan.recipe, plan.matrices, plan.ties, errors=errors, provenance=provenance
        ),
        blocks=section_blocks(plan.matrices, plan.tensors, plan.files),
    )
    worst = 0.0
    with _new_file(path, file_layout, force=force) as writer:
        digests = {
            name: writer.write(name, to_bytes(replaced[name], spec))
            for name, spec in _specs(archive, replaced).items()
        }
        archive.replace(replaced)
        for done, matrix in enumerate(plan.matrices, 1):
            if advance is not None:
                advance(done, len(plan.matrices))
            weight = partial(
                original.matrix, matrix.tensor, matrix.index, transposed=matrix.transposed
            )
            if matrix.name not in tuned:
                if any(one.name in replaced for one in sections_of(matrix)):
                    decoded = archive.matrix(matrix.name, dtype=torch.float64)
                    errors[matrix.name] = _relative(weight(), decoded)
                continue
            row = row_of(archive, matrix.name, tuned[matrix.name], None)
            made, error = packed(row, tuned[matrix.name])
            worst = max(worst, error)
            for spec in adapter_storage.sections(row):
                name = names.matrix_section(matrix.name, spec.role)
                digests[name] = writer.write(name, to_bytes(made[spec.role], spec))
            errors[matrix.name] = _relative_error(
                weight(), archive.coded(matrix.name, dtype=torch.float64), row, made
            )
        for entry in archive.manifest.sections:
            if entry.name not in digests:
                digests[entry.name] = writer.write(entry.name, archive.section(entry.name))
        document = to_document(
            plan.recipe, plan.matrices, plan.ties, errors=errors, provenance=provenance
        )
        writer.finish(document, digests)
    return file_layout.file_bytes, worst


def _specs(archive: ModelArchive, replaced: Mapping[str, Tensor]) -> dict[str, SectionSpec]:
    """The specs of replaced sections by name, in storage order."""
    known = learnable_sections(archive.plan)
    return {name: one.spec for name, one in known.items() if name in replaced}


@contextlib.contextmanager
def _new_file(path: Path, file_layout: Layout, *, force: bool) -> Iterator[Writer]:
    """A writer of a file that appears under its name when all went well; the lock is held."""
    with whole_file(path, force=force) as partial, Writer.create(partial, file_layout) as writer:
        yield writer


def _product_error(exact: tuple[Tensor, Tensor], rounded: tuple[Tensor, Tensor]) -> float:
    """||L1 L2 - L1' L2'|| / ||L1 L2||, from r x r products alone; 0 for a product of zeros."""
    left = torch.cat([exact[0], -rounded[0]], 1).double()  # [p, 2r]
    right = torch.cat([exact[1], rounded[1]], 0).double()  # [2r, q]
    wrong = float(((left.T @ left) * (right @ right.T)).sum())
    one, two = exact[0].double(), exact[1].double()
    whole = float(((one.T @ one) * (two @ two.T)).sum())
    return (max(0.0, wrong) / whole) ** 0.5 if whole > 0 else 0.0


def _relative_error(
    weight: Tensor, coded: Tensor, row: AdapterEntry, made: Mapping[str, Tensor]
) -> float:
    """||W - W^|| / ||W|| in float64, with W^ as a reader decodes it; `coded` is used up."""
    if row.rank:
        coded.addmm_(*low_rank.decode(adapter_storage.residual(row), made, torch.float64))
    if row.gain:
        coded.mul_(made["gain"].to(coded.dtype)[:, None])
    return _relative(weight, coded)


def _relative(weight: Tensor, decoded: Tensor) -> float:
    """||W - W^|| / ||W|| in float64."""
    exact = weight.double()
    norm = float(torch.linalg.vector_norm(exact))
    return float(torch.linalg.vector_norm(exact - decoded)) / norm if norm else 0.0
