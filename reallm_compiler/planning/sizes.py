"""The exact sizes of a plan: every byte of the archive under one name.

Bytes are integers throughout. What a share group stores once is divided among its matrices so
that the parts are integers and add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from reallm_compiler.planning.budget import Budget, MatrixBudget, Totals
from reallm_compiler.planning.gc_paused import gc_paused
from reallm_compiler.planning.parts import PlannedFile, PlannedMatrix, PlannedTensor
from reallm_compiler.storage.base import Cost, SectionSpec
from reallm_compiler.storage.matrix import TERMS, MatrixLayout
from reallm_compiler.units import bits_per_weight, split_evenly
from reallm_formats import BITS, Layout

WEIGHTY = 0.1
"""Part of the file from which kept matrices are worth a remark."""


class PlanParts(Protocol):
    """What a budget needs of a plan (`planning.model.Plan`)."""

    @property
    def matrices(self) -> tuple[PlannedMatrix, ...]:
        """Coded matrices, in storage order."""
        ...

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """Kept tensors."""
        ...

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Embedded files."""
        ...

    @property
    def groups(self) -> Mapping[str, tuple[PlannedMatrix, ...]]:
        """Matrices of each share group, in storage order."""
        ...

    @property
    def layout(self) -> Layout:
        """Offset of every section."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the budget should know."""
        ...

    @property
    def tensor_bytes(self) -> int | None:
        """Bytes of the original's tensors; None if only the plan is known."""
        ...


@gc_paused()
def budget_of(plan: PlanParts) -> Budget:
    """The budget of a plan."""
    alike: dict[int, _Alike] = {}
    shares = shared_parts(plan, lambda _, spec: spec.nbytes)
    rows = []
    for matrix in plan.matrices:
        layout = matrix.layout
        same = alike.get(id(layout))
        if same is None:
            sharers = len(plan.groups[matrix.plan.share]) if matrix.plan.share is not None else 1
            same = alike[id(layout)] = _Alike(
                layout=layout, paper_terms=layout.paper_terms(sharers)
            )
        parts = shares.get(matrix.name, ())
        if parts not in same.sizes:
            same.sizes[parts] = _sizes(layout, parts)
        terms, size, exact = same.sizes[parts]
        same.count += 1
        rows.append(
            MatrixBudget(
                name=matrix.name,
                shape=matrix.shape,
                transposed=matrix.transposed,
                paper_bits=same.paper_bits,
                exact_bits=exact,
                nbytes=size,
                terms=terms,
                paper_terms=same.paper_terms,
                decode_macs=same.cost.decode_macs,
                training_operations=same.cost.training_operations,
            )
        )
    numel = sum(matrix.numel for matrix in plan.matrices)
    paper_total = sum(
        (same.paper_bits * same.layout.numel * same.count for same in alike.values()), Fraction(0)
    )
    coded = sum(row.nbytes for row in rows)
    other = sum(file.nbytes for file in plan.files)
    file_layout = plan.layout
    kept = file_layout.section_bytes - coded - other
    parameters = numel + sum(math.prod(tensor.shape) for tensor in plan.tensors)
    totals = Totals(
        numel=numel,
        low_rank_parameters=sum(
            same.layout.low_rank_parameters * same.count for same in alike.values()
        ),
        paper_bits=paper_total / numel if numel else Fraction(0),
        exact_bits=bits_per_weight(coded, numel),
        coded_bytes=coded,
        kept_bytes=kept,
        header_bytes=file_layout.header_bytes,
        manifest_bytes=file_layout.manifest_bytes,
        padding_bytes=file_layout.padding_bytes,
        other_bytes=other,
        file_bytes=file_layout.file_bytes,
        decode_macs=sum(row.decode_macs for row in rows),
        training_operations=sum(row.training_operations for row in rows),
        parameters=parameters,
        model_bits=bits_per_weight(coded + kept, parameters),
        source_bytes=_tensor_bytes(plan, kept) + other,
    )
    return Budget(
        matrices=tuple(rows),
        totals=totals,
        notes=plan.notes + _transposed_note(plan) + _kept_note(plan),
        warnings=_size_warning(totals),
    )


def _kept_note(plan: PlanParts) -> tuple[str, ...]:
    """A remark where matrices that are kept are a large part of a file of coded ones."""
    kept = [tensor for tensor in plan.tensors if len(tensor.shape) == 2]
    size = sum(tensor.spec.nbytes for tensor in kept)
    if not plan.matrices or size < WEIGHTY * plan.layout.file_bytes:
        return ()
    largest = max(kept, key=lambda tensor: tensor.spec.nbytes).name.removesuffix(".weight")
    return (
        f"matrices that are kept are {100 * size / plan.layout.file_bytes:.0f} % of the file, "
        f"`{largest}` the largest: a rule can code them, by `match` or `role: [embedding, head]`",
    )


def _tensor_bytes(plan: PlanParts, kept: int) -> int:
    """Bytes of the original's tensors; an archive says in which types they were."""
    if plan.tensor_bytes is not None:
        return plan.tensor_bytes
    return kept + sum(matrix.numel * BITS[matrix.dtype] // 8 for matrix in plan.matrices)


def _size_warning(totals: Totals) -> tuple[str, ...]:
    if totals.file_bytes <= totals.source_bytes:
        return ()
    return (
        f"the file is larger than the original: {totals.file_bytes:,} bytes for "
        f"{totals.source_bytes:,}; take a recipe with fewer bits, or keep the model as it is",
    )


@dataclass(kw_only=True, slots=True)
class _Alike:
    """What matrices of one layout have in common.

    Attributes:
        layout: of each of them.
        paper_terms: the parts of `paper_bits`, by budget term.
        paper_bits: bits per weight as the paper counts them.
        cost: of one of them.
        sizes: terms, bytes and exact bits, by the matrix's parts of what its group shares.
        count: how many there are.
    """

    layout: MatrixLayout
    paper_terms: Mapping[str, Fraction]
    paper_bits: Fraction = field(init=False)
    cost: Cost = field(init=False)
    sizes: dict[tuple[int, ...], tuple[Mapping[str, int], int, Fraction]] = field(
        default_factory=dict
    )
    count: int = 0

    def __post_init__(self) -> None:
        self.paper_bits = sum(self.paper_terms.values(), Fraction(0))
        self.cost = self.layout.cost


def _sizes(layout: MatrixLayout, parts: tuple[int, ...]) -> tuple[Mapping[str, int], int, Fraction]:
    """Terms, bytes and exact bits; `parts` are bytes of the shared sections, in order."""
    terms = dict.fromkeys(TERMS, 0)
    shared = iter(parts)
    for spec in layout.sections:
        terms[spec.term] += next(shared) if spec.shared else spec.nbytes
    size = sum(terms.values())
    return terms, size, bits_per_weight(size, layout.numel)


def _transposed_note(plan: PlanParts) -> tuple[str, ...]:
    """A remark for matrices whose shape here is not that in the checkpoint."""
    found = [matrix for matrix in plan.matrices if matrix.transposed]
    if not found:
        return ()
    layers = {"Conv1D" if matrix.index is None else "stacked experts" for matrix in found}
    many = "1 matrix is" if len(found) == 1 else f"{len(found):,} matrices are"
    return (
        f"{many} stored transposed in the checkpoint, as [inputs, outputs] "
        f"({', '.join(sorted(layers))}): the shapes here are [outputs, inputs]",
    )


def shared_parts(
    plan: PlanParts, nbytes: Callable[[PlannedMatrix, SectionSpec], int]
) -> dict[str, tuple[int, ...]]:
    """For each matrix of a group, its part of the bytes of each shared section, in order.

    Args:
        plan: the plan.
        nbytes: bytes of a shared section, given the first matrix of its group.
    """
    parts: dict[str, tuple[int, ...]] = {}
    for members in plan.groups.values():
        shared = [nbytes(members[0], spec) for spec in members[0].specs if spec.shared]
        split = [split_evenly(size, len(members)) for size in shared]
        for member, own in zip(members, zip(*split, strict=True), strict=True):
            parts[member.name] = own
    return parts
