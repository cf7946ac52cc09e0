"""The layout of a whole matrix: what its stages store together, and what they cost.

A `MatrixLayout` is made once from plan, shape and source type, and handed along.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from reallm_compiler.stages import MatrixPlan, Stage
from reallm_compiler.storage import dora
from reallm_compiler.storage.base import Context, Cost, SectionSpec, Shape
from reallm_compiler.storage.registry import size_law_of
from reallm_compiler.storage.work import WEIGHTS, Work, times, total

TERMS = ("codes", "codebook", "decoder", "scales", "permutation", "low_rank", "residual", "dora")
"""The budget terms of a matrix, in the order of tables."""


@dataclass(frozen=True)
class MatrixLayout:
    """What a matrix [p, q] stores under a plan.

    Attributes:
        plan: the stages.
        shape: p and q.
        source_dtype: type of the checkpoint's tensor, a name of the container.
    """

    plan: MatrixPlan
    shape: Shape
    source_dtype: str

    @property
    def numel(self) -> int:
        """Number of weights, p q."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def latent_shape(self) -> Shape:
        """Rows and columns of the latent, on which permutation, scales and quantizer act."""
        shape: Shape = size_law_of(self.plan.autoencoder).latent_shape(
            self.plan.autoencoder, self.shape
        )
        return shape

    @cached_property
    def sections(self) -> tuple[SectionSpec, ...]:
        """All sections in storage order, those of its share group included."""
        context = self._context()
        specs: list[SectionSpec] = []
        for stage, shape in self._stages():
            specs += size_law_of(stage).sections(stage, shape, context)
        if self.plan.dora:
            specs += dora.sections(self.shape)
        return tuple(specs)

    @cached_property
    def own_sections(self) -> tuple[SectionSpec, ...]:
        """Sections without those that its share group stores."""
        return tuple(spec for spec in self.sections if not spec.shared)

    @cached_property
    def shared_sections(self) -> tuple[SectionSpec, ...]:
        """Sections that its share group stores once."""
        return tuple(spec for spec in self.sections if spec.shared)

    @cached_property
    def reused_sections(self) -> tuple[SectionSpec, ...]:
        """Sections that decoding needs from an archive of kind `decoder`; mostly none."""
        params = self.plan.autoencoder
        return tuple(size_law_of(params).reused_sections(params, self.shape))

    @cached_property
    def method(self) -> str:
        """A digest of the plan, the name of its share group apart, in hex."""
        plain = {**self.plan.plain(), "share": None}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def rows_stand_alone(self) -> bool:
        """Whether each row is coded by itself, so that bands of rows make up the whole."""
        plan = self.plan
        simple = not plan.transform and not plan.dora and plan.share is None
        return simple and all(stage.by_rows for _, stage, _ in self._named_stages())

    @cached_property
    def cost(self) -> Cost:
        """What the matrix costs beside reading and writing it."""
        context = self._context()
        return Cost.of(
            [size_law_of(stage).cost(stage, shape, context) for stage, shape in self._stages()]
        )

    @cached_property
    def work(self) -> dict[str, int]:
        """Operations that coding the matrix takes, as often as its parts are fitted in turn.

        What its share group learns is not among them.
        """
        context = self._context()
        parts = []
        for name, stage, shape in self._named_stages():
            law = size_law_of(stage)
            chosen = self.plan.rounding.choices if name == "quantizer" else 1
            parts.append(times(chosen, law.work(stage, shape, context)))
            if not context.shared:
                parts.append(law.learning_work(stage, [shape]))
        rounds = max((stage.rounds for stage in self.plan.residual), default=1)
        return total([{WEIGHTS: PASSES * self.numel}, times(rounds, total(parts))])

    def work_of(self, stage: Stage) -> dict[str, int]:
        """Operations of a stage of the whole matrix that is done before its own: a folded one."""
        work: dict[str, int] = size_law_of(stage).work(stage, self.shape, self._context())
        return work

    @cached_property
    def gathering_work(self) -> dict[str, int]:
        """Operations of a member of a share group before the group can learn: its first stages."""
        context = self._context()
        early = [one for one in self._named_stages() if one[0] not in LATE_STAGES]
        parts = [size_law_of(stage).work(stage, shape, context) for _, stage, shape in early]
        return total([{WEIGHTS: PASSES * self.numel}, *parts])

    @cached_property
    def rank(self) -> int:
        """Rank of the residual's factors; 0 without factors."""
        stage = self.plan.factors
        return 0 if stage is None else int(size_law_of(stage).rank(stage, self.shape))

    @property
    def factor_dtype(self) -> str | None:
        """Recipe word for the stored type of the residual's factors; None without factors."""
        stage = self.plan.factors
        dtype: str | None = None if stage is None else size_law_of(stage).factor_dtype(stage)
        return dtype

    @property
    def low_rank_parameters(self) -> int:
        """Factors that the residual stores, r (p + q); 0 without any."""
        return self.rank * sum(self.shape)

    def sections_of(self, stage: Stage) -> tuple[SectionSpec, ...]:
        """Sections of one stage of the plan that acts on the matrix."""
        return tuple(size_law_of(stage).sections(stage, self.shape, self._context()))

    @cached_property
    def table_roles(self) -> tuple[str, ...]:
        """Roles of the quantizer's sections that a share group would store once."""
        params = self.plan.quantizer
        context = Context(source_dtype=self.source_dtype, shared=True)
        specs = size_law_of(params).sections(params, self.latent_shape, context)
        return tuple(spec.role for spec in specs if spec.shared)

    @cached_property
    def refusal(self) -> tuple[str, str] | None:
        """Why the matrix cannot be stored so, as (stage, reason); None if it can."""
        context = self._context()
        for name, stage, shape in self._named_stages():
            reason = size_law_of(stage).refusal(stage, shape, context)
            if reason is not None:
                return name, reason
        return None

    def paper_terms(self, sharers: int = 1) -> dict[str, Fraction]:
        """Bits per weight as the paper's Table 5 counts them, by budget term.

        [ b x latent values + 16 d 2^(bd) if the codebook is learned + c x b_phi / m
        + 32 r min(p, q) ] / pq: no scales, no permutation, no gains, the nominal c of a
        decoder, and a low-rank part that is right for squares only.

        Args:
            sharers: m, the matrices that share its decoder.
        """
        context = self._context(sharers)
        terms: dict[str, Fraction] = {}
        for stage, shape in self._stages():
            for term, bits in size_law_of(stage).paper_bits(stage, shape, context).items():
                terms[term] = terms.get(term, Fraction(0)) + bits / self.numel
        return terms

    def paper_bits(self, sharers: int = 1) -> Fraction:
        """The sum of `paper_terms`."""
        return sum(self.paper_terms(sharers).values(), Fraction(0))

    def _context(self, sharers: int = 1) -> Context:
        return Context(
            source_dtype=self.source_dtype, shared=self.plan.share is not None, sharers=sharers
        )

    def _stages(self) -> list[tuple[Stage, Shape]]:
        return [(stage, shape) for _, stage, shape in self._named_stages()]

    def _named_stages(self) -> list[tuple[str, Stage, Shape]]:
        """(name, stage, the shape that it acts on), in storage order."""
        plan, latent = self.plan, self.latent_shape
        found: list[tuple[str, Any, Shape]] = [
            ("residual", residual, self.shape) for residual in plan.residual
        ]
        found += [("transform", transform, self.shape) for transform in plan.transform]
        found.append(("autoencoder", plan.autoencoder, self.shape))
        found += [(name, getattr(plan, name), latent) for name in LATENT_STAGES]
        return found


LATENT_STAGES = ("permutation", "scales", "quantizer", "rounding")
"""Stages that act on the latent, in order."""

LATE_STAGES = ("autoencoder", "quantizer", "rounding")
"""Stages for which a share group learns first."""

PASSES = 4
"""Times that the weights are gone over however they are coded: read, split, measured, written."""


def layout_of(plan: MatrixPlan, shape: Shape, source_dtype: str) -> MatrixLayout:
    """The layout of a matrix [p, q] of type `source_dtype` under `plan`."""
    return MatrixLayout(plan, shape, source_dtype)


class LayoutTable:
    """Layouts of many matrices: one object for all that have the same plan, shape and type.

    A model has a hundred thousand matrices and few that differ. Plans are compared by identity: a
    hash of a plan costs as much as a size law, and a recipe makes one object for many matrices.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, Shape, str], MatrixLayout] = {}

    def layout_of(self, plan: MatrixPlan, shape: Shape, source_dtype: str) -> MatrixLayout:
        """The layout of a matrix [p, q] of type `source_dtype` under `plan`."""
        key = (id(plan), shape, source_dtype)  # the layout holds the plan, and so its identity
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = MatrixLayout(plan, shape, source_dtype)
        return found


def group_work(layouts: Sequence[MatrixLayout]) -> dict[str, int]:
    """Operations that learn what the matrices of a share group have in common."""
    parts: list[Work] = [layout.gathering_work for layout in layouts]
    for name, stage, _ in layouts[0]._named_stages():
        latent = name in LATENT_STAGES
        shapes = [layout.latent_shape if latent else layout.shape for layout in layouts]
        parts.append(size_law_of(stage).learning_work(stage, shapes))
    return total(parts)


def group_bytes(layouts: Sequence[MatrixLayout]) -> int:
    """Memory of what is gathered from all matrices of a share group to learn what they share."""
    plan = layouts[0].plan
    total = 0
    for name, stage, _ in layouts[0]._named_stages():
        latent = name in LATENT_STAGES
        shapes = [layout.latent_shape if latent else layout.shape for layout in layouts]
        total += size_law_of(stage).group_bytes(stage, shapes)
    return total if plan.share is not None else 0
