"""Packed weights over the pages of an archive: nothing is read before it is used.

The section tensors are copy-on-write views of the mapped file, so processes that load the same
file share its pages, and a page that was never touched takes no memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import EvaluationError
from reallm_compiler.kernels.packed import PackedForm, PackedMatrix
from reallm_compiler.models.build import ModelFiles, Stored
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.reader.huggingface import archive_files
from reallm_compiler.runtime.packed import pack_modules
from reallm_compiler.runtime.weight import PackedWeight

Mode = Literal["dense", "packed"]
"""How an archive's coded matrices are held: decoded, or as they are stored."""


def check_mode(mode: str) -> None:
    """Raises EvaluationError where there is no such mode."""
    if mode not in get_args(Mode):
        raise EvaluationError(f"there is no mode {mode!r}", hint="modes are dense and packed")


def packed_matrix(archive: ModelArchive, name: str, *, coded_only: bool = False) -> PackedMatrix:
    """A matrix of an archive as it is stored, with the adapter in use.

    Args:
        archive: opened with `private=True`, so that nothing is copied.
        name: of the matrix.
        coded_only: the coded part alone: without factors and gains.

    Raises:
        SourceError: no matrix has this name.
        FormatError: a section of it is damaged, or holds what it cannot mean.
    """
    layout, sections = archive.coded_sections(name) if coded_only else archive.stored(name)
    form = PackedForm(layout=layout, column_gain="column_gain" in sections)
    return form.with_sections([sections[spec.role] for spec in form.specs])


def packed_files(
    archive: ModelArchive,
    *,
    dtype: torch.dtype | None = None,
    coded_only: Collection[str] = (),
) -> ModelFiles:
    """The model of an open archive, its coded tensors packed, its kept ones mapped.

    Args:
        archive: opened with `private=True`. It may be closed when the model is built, but for one
            that is checked later: that would wait.
        dtype: type to run in; the checkpoint's own when None.
        coded_only: tensors of which the coded part alone is given, for those who add the rest.

    Errors are those of `archive_files`.
    """
    files = archive_files(archive, dtype=dtype)
    parts: dict[str, list[PlannedMatrix]] = {}
    for matrix in archive.plan.matrices:
        parts.setdefault(matrix.tensor, []).append(matrix)
    packed = {
        name: Stored(
            files.tensors[name].dtype,
            partial(packed_weight_of, archive, matrices, dtype, coded_only=name in coded_only),
        )
        for name, matrices in parts.items()
    }

    def finish(model: nn.Module) -> None:
        pack_modules(model)
        check_later(model, archive)

    tensors = {**files.tensors, **packed}
    # Each expert by itself: other ways of running a stack read all of it.
    return replace(files, tensors=tensors, experts="eager", finish=finish)


def packed_weight_of(
    archive: ModelArchive,
    matrices: Iterable[PlannedMatrix],
    dtype: torch.dtype | None = None,
    *,
    coded_only: bool = False,
) -> Any:  # noqa: ANN401
    """The packed weight of a tensor of the checkpoint, in its shape.

    Args:
        archive: the archive.
        matrices: all that belong to the tensor.
        dtype: in which it decodes; the checkpoint's own when None.
        coded_only: the coded part alone: without factors and gains.
    """
    made: list[Tensor] = []
    for matrix in sorted(matrices, key=lambda part: part.index or 0):
        packed = packed_matrix(archive, matrix.name, coded_only=coded_only)
        weight = PackedWeight.of(packed, dtype or TORCH_DTYPES[matrix.dtype])
        made.append(weight.t() if matrix.transposed else weight)
    return made[0] if matrix.index is None else torch.stack(made)


def check_later(model: nn.Module, archive: ModelArchive) -> None:
    """Have each call of a model raise what the checks of its archive have found until then.

    When all is checked and right, calls look no more. The pages stay mapped as long as a weight
    of the model needs them.
    """
    if not archive.checking:
        return
    handles: list[Any] = []

    def look(*_: object) -> None:
        if not torch.compiler.is_compiling() and not archive.checking:
            for handle in handles:
                handle.remove()
            handles.clear()

    handles.append(model.register_forward_pre_hook(look))
