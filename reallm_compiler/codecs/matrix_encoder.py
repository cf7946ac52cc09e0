"""One matrix on its way through the stages of its plan.

    W -> take off R -> transforms -> encode -> code the latent -> (gains)

Where residuals are fitted in turn with the codes, the stages run several times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from reallm_compiler.codecs import dora
from reallm_compiler.codecs.callback import NoCallback, TrainingCallback
from reallm_compiler.codecs.contract import Coding, MatrixTransform, Shape, Trial
from reallm_compiler.codecs.decode import MatrixDecoder, relative_error, residual_terms
from reallm_compiler.codecs.latent_coder import StagesCoder, fit_tables
from reallm_compiler.codecs.numerics.gram import full
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.stages import MatrixPlan, NearestRounding, NoPermutation, ResidualStage
from reallm_compiler.storage.matrix import MatrixLayout, layout_of


class MatrixEncoder:
    """One matrix on its way through the stages.

    Args:
        layout: of the matrix.
        weight: [p, q] in the precision of the work.
        generator: of the matrix or the group.
        seed: that it was made of.
        shared: sections of the share group or of a reused decoder.
        callback: called while an autoencoder is trained.
        statistics: of the matrix, if the plan needs them.
    """

    def __init__(
        self,
        layout: MatrixLayout,
        weight: Tensor,
        *,
        generator: torch.Generator,
        seed: int,
        shared: Mapping[str, Tensor],
        callback: TrainingCallback,
        statistics: MatrixStatistics | None = None,
    ) -> None:
        plan = layout.plan
        self.layout = layout
        self.plan = plan
        self.weight = weight
        self.generator = generator
        self.statistics = statistics
        self.coder = StagesCoder(
            plan=plan,
            shape=layout.latent_shape,
            source_dtype=layout.source_dtype,
            tables=layout.table_roles,
            generator=generator,
        )
        self.coding = Coding(
            coder=self.coder,
            shape=layout.shape,
            seed=seed,
            coarse=plan.quantizer.coarse,
            shared=shared,
            in_group=plan.share is not None,
            callback=callback,
        )

    def fit(self) -> Sections:
        """Sections of the residuals and of the coded part.

        They are fitted once, or in turn until the error rises.
        """
        stages = self.plan.residual
        rounds = max((stage.rounds for stage in stages), default=1)
        best: Sections = {}
        best_error = math.inf
        residuals: list[Sections] = [{} for _ in stages]
        coded: Sections = {}
        for _ in range(rounds):
            self._fit_residuals(residuals, coded, first=True)
            coded = self._code(self._rest(_joined(residuals), {}))
            self._refine(residuals, coded)
            self._fit_residuals(residuals, coded, first=False)
            sections = _joined(residuals) | coded
            if rounds == 1:
                return sections
            error = self._error(sections)
            if error >= best_error:
                break
            best, best_error = sections, error
        return best

    def _fit_residuals(self, residuals: list[Sections], coded: Sections, *, first: bool) -> None:
        """Fit those residuals that see the matrix before the quantizer, or those after it.

        Each follows what the coded part and the other residuals leave.
        """
        for index, stage in enumerate(self.plan.residual):
            if stage.first != first:
                continue
            others = _joined(residuals[:index] + residuals[index + 1 :])
            rest = self._rest(others, coded) if others or coded else self.weight
            residuals[index] = codec_of(stage).encode(
                stage, rest, self.generator, self.weight, self._metric_of(stage)
            )

    def _refine(self, residuals: list[Sections], coded: Sections) -> None:
        """Fit those residuals once more that were fitted before the codes were chosen."""
        for index, stage in enumerate(self.plan.residual):
            if not (stage.first and stage.refined):
                continue
            rest = self._rest(_joined(residuals[:index] + residuals[index + 1 :]), coded)
            residuals[index] = codec_of(stage).refined(
                stage, residuals[index], rest, self.weight, self._metric_of_codes()
            )

    def _metric_of_codes(self) -> Metric | None:
        """What errors of the matrix cost where its codes are chosen; None for their squares."""
        if self.statistics is None:
            return None
        rounding = self.plan.rounding
        metric: Metric | None = codec_of(rounding).metric(rounding, self.statistics)
        return metric

    def _metric_of(self, stage: ResidualStage) -> Metric | None:
        """The metric in which a residual is fitted; None for that of weights."""
        if self.statistics is None or not stage.needs_statistics:
            return None
        metric: Metric | None = codec_of(stage).metric(stage, self.statistics)
        return metric

    def _error(self, sections: Sections) -> float:
        """What fitting in turn makes small: the relative error, in the metric of the residual that
        is fitted in turn.
        """
        decoder = self.decoder(sections)
        metric = next(self._metric_of(stage) for stage in self.plan.residual if stage.rounds > 1)
        if metric is None:
            return relative_error(self.weight, decoder)
        inputs, outputs = metric.inputs, metric.outputs
        total = 0.0
        for first, last in decoder.panels():
            error = (self.weight[first:last] - decoder.rows(first, last)).to(torch.float64)
            moved = error * inputs if inputs.dim() == 1 else error @ inputs.to(torch.float64)
            costs = (moved * error).sum(1)  # [rows]
            total += float(costs.sum() if outputs is None else costs @ outputs[first:last].double())
        return math.sqrt(max(total, 0.0))

    def target(self) -> Tensor:
        """What the autoencoder would see after the first residuals, a fresh tensor."""
        residuals: list[Sections] = [{} for _ in self.plan.residual]
        self._fit_residuals(residuals, {}, first=True)
        return self._transform(self._rest(_joined(residuals), {}))[1]

    def gains(self, sections: Sections) -> Tensor:
        """float16 [p]: the gains of the rows of W^."""
        decoder = self.decoder(sections)
        parts = [
            dora.gain(self.weight[first:last], decoder.rows(first, last))
            for first, last in decoder.panels()
        ]
        return dora.stored(torch.cat(parts))

    def decoder(self, sections: Sections) -> MatrixDecoder:
        """Decodes the matrix from own sections."""
        return MatrixDecoder(self.layout, {**sections, **self.coding.shared}, self.weight.dtype)

    def _transform(self, target: Tensor) -> tuple[Sections, Tensor]:
        """Sections of the transforms of `target` [p, q], and the outcome in its place."""
        sections: Sections = {}
        for index, transform in enumerate(self.plan.transform):
            made, target = codec_of(transform).encode(transform, target, self._trial(index))
            sections |= made
        return sections, target

    def _trial(self, index: int) -> Trial | None:
        """What a transform is chosen by; None for one that needs no statistics."""
        plan, statistics = self.plan, self.statistics
        if statistics is None or not plan.transform[index].needs_statistics:
            return None
        left = plan.model_copy(update={"transform": plan.transform[index + 1 :]})
        layout = self.layout
        return trial_of(left, layout.shape, layout.source_dtype, self.coding.seed, statistics)

    def _code(self, target: Tensor) -> Sections:
        """Sections of the coded part of `target` [p, q], which is used up."""
        sections, target = self._transform(target)
        learn = partial(fit_tables, self.plan.quantizer)
        codec = codec_of(self.plan.autoencoder)
        coding = self.coding
        if self.statistics is not None:
            metric, moments = self._metrics(sections)
            coding = replace(coding, coder=replace(self.coder, metric=metric, moments=moments))
        made: Sections = codec.encode(self.plan.autoencoder, target, coding, learn)
        return sections | made

    def _metrics(self, sections: Sections) -> tuple[Metric | None, Metric | None]:
        """What errors of the transformed matrix cost where its codes are chosen, and the plain
        moments of its inputs and outputs; each None where no stage needs it.
        """
        plan, statistics = self.plan, self.statistics
        assert statistics is not None
        metric = self._metric_of_codes()
        moments = None
        if plan.permutation.needs_statistics or plan.scales.needs_statistics:
            outputs = None if statistics.outputs is None else full(statistics.outputs)
            moments = Metric(inputs=full(statistics.inputs), outputs=outputs)
        for params in plan.transform:
            codec = codec_of(params)
            transform = codec.decoder(params, self.layout.shape, sections, torch.float64)
            metric, moments = _moved(transform, metric), _moved(transform, moments)
        return metric, moments

    def _rest(self, residuals: Sections, coded: Sections) -> Tensor:
        """W less residuals and coded part as stored, a fresh tensor."""
        if not coded:
            terms = residual_terms(
                self.plan.residual, self.layout.shape, residuals, self.weight.dtype
            )
            rest = terms[0].taken_from(self.weight) if terms else self.weight.clone()
            for term in terms[1:]:
                rest = term.taken_from(rest)
            return rest
        decoder = self.decoder(residuals | coded)
        rest = torch.empty_like(self.weight)
        for first, last in decoder.panels():
            torch.sub(self.weight[first:last], decoder.rows(first, last), out=rest[first:last])
        return rest


def trial_of(
    plan: MatrixPlan, shape: Shape, source_dtype: str, seed: int, statistics: MatrixStatistics
) -> Trial:
    """What a transform is chosen by.

    Args:
        plan: of the matrix, with the later transforms alone.
        shape, source_dtype: of the matrix.
        seed: of its generator.
        statistics: of the matrix before the transform.
    """
    later = plan.model_copy(
        update={
            "residual": (),
            "permutation": NoPermutation(),
            "scales": plan.scales.unsearched,
            "rounding": NearestRounding(),
            "dora": False,
        }
    )
    layout = layout_of(later, shape, source_dtype)

    def coded(matrix: Tensor) -> Tensor:
        encoder = MatrixEncoder(
            layout,
            matrix,
            generator=torch.Generator().manual_seed(seed),
            seed=seed,
            shared={},
            callback=NoCallback(),
        )
        decoder = encoder.decoder(encoder.fit())
        return torch.cat([decoder.rows(first, last) for first, last in decoder.panels()])

    return Trial(statistics=statistics, coded=coded)


def _joined(parts: Iterable[Sections]) -> Sections:
    """All sections of several residuals."""
    return {role: values for sections in parts for role, values in sections.items()}


def _moved(transform: MatrixTransform, metric: Metric | None) -> Metric | None:
    """The metric of T(W) by that of W."""
    if metric is None:
        return None
    outputs = None if metric.outputs is None else transform.gradient_gram(metric.outputs)
    return Metric(inputs=transform.gram(metric.inputs), outputs=outputs)
