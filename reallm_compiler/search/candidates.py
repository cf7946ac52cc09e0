"""What a measurement codes: the candidates of each matrix, and the keys by which they are known.

A key is a digest of all that decides a damage: the stored bytes of the weights, the plan, what the
share group is learned of, the statistics, the seed, software and processor capability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.errors import CompileError
from reallm_compiler.execute.kept_sections import matrix_identity
from reallm_compiler.execute.statistics import StatisticsInput, original_name
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.runs.identity import digest_of
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import LayoutTable
from reallm_formats import names

Planned = Mapping[str, tuple[PlannedMatrix, ...]]
"""The candidates of each matrix, as it would be planned by each."""

Source = Mapping[str, str]
"""SHA-256 of the stored bytes that a matrix is made of, by tensor, in hex."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to code one matrix.

    Attributes:
        matrix: the matrix, and how it is coded.
        key: of its damage.
        group: key of what its share group has in common; None without a group.
    """

    matrix: PlannedMatrix
    key: str
    group: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """All that is to be measured.

    Attributes:
        sources: of each matrix.
        of_matrix: candidates of each matrix, in the order of its plans.
        groups: members of each share group, by key.
    """

    sources: Mapping[str, Source]
    of_matrix: Mapping[str, tuple[Candidate, ...]]
    groups: Mapping[str, tuple[PlannedMatrix, ...]]


def planned(jobs: Mapping[str, Sequence[MatrixPlan]], inventory: Inventory) -> Planned:
    """The candidates of each matrix with their layouts.

    Raises:
        CompileError: a name is no matrix of the model, or has no plan.
    """
    facts = {fact.name: fact for fact in inventory.matrices()}
    layouts = LayoutTable()
    found = {}
    for name, plans in jobs.items():
        fact = facts.get(name)
        if fact is None or not plans:
            what = "is no matrix of this model" if fact is None else "has no candidate"
            raise CompileError(f"{name} {what}", location=inventory.path or None)
        if any(plan.folded for plan in plans):
            raise CompileError(
                f"a candidate of {name} folds its factors, which it shares with other matrices",
                note="the damage of one matrix says nothing of them",
                hint="leave `fold` out: factors that are stored are each matrix's own",
            )
        found[name] = tuple(
            PlannedMatrix(
                name=name,
                tensor=fact.tensor,
                index=fact.index,
                transposed=fact.transposed,
                layout=layouts.layout_of(plan, fact.shape, fact.dtype),
            )
            for plan in plans
        )
    return found


def candidates(
    matrices: Planned,
    inventory: Inventory,
    statistics: StatisticsInput | None,
    seed: int,
    device: torch.device,
) -> Candidates:
    """The candidates with their keys; every weight is read once, for its digest.

    Raises:
        SourceError: a shard cannot be read.
    """
    weights = Weights(inventory)
    digest = None if statistics is None else statistics.digest.hex()
    sources: dict[str, Source] = {}
    for name, several in matrices.items():
        weights.read(several[0].tensor, several[0].index)
        sources[name] = weights.take_digests()

    def identity(matrix: PlannedMatrix) -> dict[str, object]:
        spec = weights.by_name[matrix.tensor]
        return matrix_identity(matrix, spec, sources[matrix.name], digest, seed, device)

    groups: dict[str, tuple[PlannedMatrix, ...]] = {}
    group_of: dict[int, str] = {}
    for plan, (members, same) in _sharing(matrices).items():
        assert plan.share is not None  # such are these
        own = seed_for(seed, names.share_section(plan.share, ""))
        key = digest_of({"group": [identity(matrix) for matrix in members], "seed": own})
        groups[key] = members
        group_of |= dict.fromkeys(same, key)
    of_matrix = {}
    for name, several in matrices.items():
        spec = weights.by_name[several[0].tensor]
        metric = [digest, original_name(several[0], spec)]
        made = []
        for matrix in several:
            group = group_of.get(id(matrix.plan))
            whole = {**identity(matrix), "metric": metric, "common": group}
            made.append(Candidate(matrix=matrix, key=digest_of(whole), group=group))
        of_matrix[name] = tuple(made)
    return Candidates(sources=sources, of_matrix=of_matrix, groups=groups)


def _sharing(
    matrices: Planned,
) -> dict[MatrixPlan, tuple[tuple[PlannedMatrix, ...], set[int]]]:
    """The members of each share group, and the identities of the plans that are equal to its own.

    Members are the matrices that have a candidate with such a plan. Plans are compared by identity
    first: a hash of one costs as much as a size law.
    """
    members: dict[MatrixPlan, dict[str, PlannedMatrix]] = {}
    of_plan: dict[int, dict[str, PlannedMatrix]] = {}
    for name, several in matrices.items():
        for matrix in several:
            if matrix.plan.share is None:
                continue
            number = id(matrix.plan)
            if number not in of_plan:
                of_plan[number] = members.setdefault(matrix.plan, {})
            of_plan[number].setdefault(name, matrix)
    return {
        plan: (tuple(found.values()), {one for one, same in of_plan.items() if same is found})
        for plan, found in members.items()
    }
