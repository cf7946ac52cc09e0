"""The matrices that a survey looks at: of a checkpoint, or of an archive as it decodes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from reallm_compiler.checkpoint import Inventory, MatrixFact, open_source
from reallm_compiler.checkpoint.folder import CONFIG
from reallm_compiler.checkpoint.linear import matrices
from reallm_compiler.checkpoint.paths import parse_json
from reallm_compiler.errors import SourceError
from reallm_compiler.models.weights import Weights
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_compiler.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Surveyed:
    """A model's matrices.

    Attributes:
        path: of the model.
        facts: its matrices.
        read: gives the weights [p, q] of one.
        inventory: the checkpoint that recipes can be tried on; None for an archive.
    """

    path: str
    facts: tuple[MatrixFact, ...]
    read: Callable[[MatrixFact], Tensor]
    inventory: Inventory | None = None


@contextmanager
def open_surveyed(
    model: str | os.PathLike[str] | Inventory, *, allow_cost: bool = False
) -> Iterator[Surveyed]:
    """The matrices of a checkpoint or an archive, which stays open as long as they are read.

    Raises:
        SourceError: the model cannot be read or has no weights.
        FormatError: the archive is damaged.
    """
    if isinstance(model, str | os.PathLike) and os.fspath(model).endswith(".reallm"):
        with open_archive(model, allow_cost=allow_cost) as archive:
            yield _archive(archive)
        return
    inventory = model if isinstance(model, Inventory) else open_source(model)
    if not inventory.complete:
        raise SourceError(
            "this model has no weights to survey",
            location=str(inventory.path),
            hint="give a folder with weights",
        )
    weights = Weights(inventory)
    yield Surveyed(
        path=str(inventory.path),
        facts=inventory.matrices(),
        read=lambda fact: weights.matrix(fact.tensor, fact.index, transposed=fact.transposed),
        inventory=inventory,
    )


def _archive(archive: ModelArchive) -> Surveyed:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        tensor.name: (tensor.dtype, tensor.shape) for tensor in archive.plan.tensors
    }
    for matrix in archive.plan.matrices:
        extents = matrix.shape[::-1] if matrix.transposed else matrix.shape
        stack = () if matrix.index is None else (matrix.index + 1,)
        before = shapes.get(matrix.tensor)
        if before is None or stack > before[1][:1]:
            shapes[matrix.tensor] = (matrix.dtype, (*stack, *extents))
    small = dict(archive.files())
    config = parse_json(small[CONFIG], f"{archive.path}: {CONFIG}") if CONFIG in small else None
    specs = [TensorSpec(name=n, dtype=dtype, shape=shape) for n, (dtype, shape) in shapes.items()]

    def read(fact: MatrixFact) -> Tensor:
        if fact.name in archive.plan.by_name:
            return archive.matrix(fact.name)
        kept = archive.tensor(fact.tensor)
        values = kept if fact.index is None else kept[fact.index]
        return values.t() if fact.transposed else values

    return Surveyed(path=str(archive.path), facts=tuple(matrices(specs, config)), read=read)
