"""Packed weights over the pages of an archive: nothing is read before it is used.

The section tensors are copy-on-write views of the mapped file, so processes that load the same
file share its pages, and a page that was never touched takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.kernels.packed import PackedForm, PackedMatrix
from reallm_compiler.models.build import ModelFiles, Stored
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.reader.huggingface import archive_files
from reallm_compiler.runtime.packed import pack_modules
from reallm_compiler.runtime.weight import PackedWeight


def packed_matrix(archive: ModelArchive, name: str) -> PackedMatrix:
    """A matrix of an archive as it is stored, with the adapter in use.

    Args:
        archive: opened with `private=True`, so that nothing is copied.
        name: of the matrix.

    Raises:
        SourceError: no matrix has this name.
        FormatError: a section of it is damaged, or holds what it cannot mean.
    """
    layout, sections = archive.stored(name)
    form = PackedForm(layout=layout, column_gain="column_gain" in sections)
    return form.with_sections([sections[spec.role] for spec in form.specs])


def packed_files(archive: ModelArchive, *, dtype: torch.dtype | None = None) -> ModelFiles:
    """The model of an open archive, its coded tensors packed, its kept ones mapped.

    Args:
        archive: opened with `private=True`. It may be closed when the model is built, but for one
            that is checked later: that would wait.
        dtype: type to run in; the checkpoint's own when None.

    Errors are those of `archive_files`.
    """
    files = archive_files(archive, dtype=dtype)
    parts: dict[str, list[PlannedMatrix]] = {}
    for matrix in archive.plan.matrices:
        parts.setdefault(matrix.tensor, []).append(matrix)
    packed = {
        name: Stored(files.tensors[name].dtype, partial(packed_weight_of, archive, matrices, dtype))
        for name, matrices in parts.items()
    }

    def finish(model: nn.Module) -> None:
        pack_modules(model)
        check_later(model, archive)

    tensors = {**files.tensors, **packed}
    # Each expert by itself: other ways of running a stack read all of it.
    return replace(files, tensors=tensors, experts="eager", finish=finish)


def packed_weight_of(
    archive: ModelArchive, matrices: Iterable[PlannedMatrix], dtype: torch.dtype | None = None
) -> Any:  # noqa: ANN401
    """The packed weight of a tensor of the checkpoint, in its shape.

    Args:
        archive: the archive.
        matrices: all that belong to the tensor.
        dtype: in which it decodes; the checkpoint's own when None.
    """
    made: list[Tensor] = []
    for matrix in sorted(matrices, key=lambda part: part.index or 0):
        packed = packed_matrix(archive, matrix.name)
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
