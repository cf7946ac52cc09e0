"""A matrix to its sections: the stages of its plan, one after the other.

    W -> take off R -> transforms -> encode -> code the latent -> (gains)

No method has a path of its own: the registry says which codec a kind has. The relative error of a
matrix is measured on what a reader will decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from reallm_compiler.codecs import dora
from reallm_compiler.codecs.callback import NoCallback, TrainingCallback
from reallm_compiler.codecs.contract import PANEL, Coding, MatrixTransform, Trial
from reallm_compiler.codecs.decode import (
    MatrixDecoder,
    relative_error,
    residual_terms,
    work_dtype,
)
from reallm_compiler.codecs.latent_coder import StagesCoder, fit_tables
from reallm_compiler.codecs.numerics.gram import full
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.sections import Sections, check_sections
from reallm_compiler.codecs.statistics import MatrixStatistics, Metric
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import MatrixPlan, NearestRounding, NoPermutation, ResidualStage
from reallm_compiler.storage.matrix import MatrixLayout, layout_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A coded matrix.

    Attributes:
        sections: section tensors by role, in storage order, without those of its share group.
        relative_error: ||W - W^|| / ||W|| by Frobenius, with W^ as decoded; 0 if W is zero.
    """

    sections: Sections
    relative_error: float


def encode_matrix(
    plan: MatrixPlan,
    weight: Tensor,
    *,
    seed: int,
    source_dtype: str,
    shared: Mapping[str, Tensor] | None = None,
    callback: TrainingCallback | None = None,
    first_row: int = 0,
    statistics: MatrixStatistics | None = None,
    layout: MatrixLayout | None = None,
) -> Encoded:
    """Encodes a matrix by its plan.

    Args:
        plan: what to do.
        weight: [p, q], of any floating type, on any device; it is not changed.
        seed: of the matrix's own generator, from 0 to 2^63 - 1.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        shared: sections of the plan's share group, as `fit_shared` made them, or of the decoder
            that it reuses.
        callback: called while an autoencoder is trained.
        first_row: number of the first row in messages, where `weight` is a part of a matrix.
        statistics: of the matrix, for a plan that needs them.
        layout: of the matrix under the plan, where it was made before.

    Returns:
        the sections of the matrix's layout, less the shared ones, on the device of `weight`; and
        the relative error.

    Raises:
        CodecError: the weight is not a finite matrix, a stored type is too narrow for what it
            holds, or the sections are not those of the size law.
    """
    _check_weight(weight, first_row)
    if layout is None:
        layout = layout_of(plan, (weight.shape[0], weight.shape[1]), source_dtype)
    work = weight.detach().to(work_dtype(source_dtype)).contiguous()
    common = dict(shared or {})
    if plan.needs_statistics and statistics is None:
        raise CodecError("the plan needs the statistics of the matrix's inputs and outputs")
    if plan.share is not None and not common:
        raise CodecError(f"the sections of share group `{plan.share}` are missing")
    if plan.share is None:
        check_sections(common, layout.reused_sections)
    job = _Job(
        layout,
        work,
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        shared=common,
        callback=callback or NoCallback(),
        statistics=statistics if plan.needs_statistics else None,
    )
    sections = job.fit()
    if plan.dora:
        sections["gain"] = job.gains(sections)
    check_sections(sections, layout.own_sections)
    sections = {spec.role: sections[spec.role] for spec in layout.own_sections}
    error = relative_error(work, job.decoder(sections))
    return Encoded(sections=sections, relative_error=error)


def fit_shared(
    plan: MatrixPlan,
    weights: Sequence[Tensor],
    *,
    seed: int,
    callback: TrainingCallback | None = None,
) -> Sections:
    """Learns the sections that the matrices of a share group store once.

    Args:
        plan: the plan of the group; its matrices differ in shape only.
        weights: the group's matrices, each taken from the sequence once, in order.
        seed: of the group's generator.
        callback: called while a decoder is trained.

    Raises:
        CodecError: the plan shares nothing, or a weight is not a finite matrix.
    """
    if plan.share is None or not len(weights):
        raise CodecError("a share group needs a plan with `share` and at least one matrix")
    generator = torch.Generator().manual_seed(seed)
    # No frame in between holds a matrix while the codec has it, or while the next one is read.
    members = map(partial(_member, plan, generator, seed, callback or NoCallback()), weights)
    learn = partial(fit_tables, plan.quantizer)
    sections: Sections = codec_of(plan.autoencoder).fit_group(
        plan.autoencoder, members, len(weights), generator, learn
    )
    return sections


def _member(
    plan: MatrixPlan,
    generator: torch.Generator,
    seed: int,
    callback: TrainingCallback,
    weight: Tensor,
) -> tuple[Coding, Tensor]:
    """What the autoencoder of one matrix of a group is given."""
    _check_weight(weight)
    source_dtype = "f64" if weight.dtype == torch.float64 else "f32"
    work = weight.detach().to(work_dtype(source_dtype)).contiguous()
    layout = layout_of(plan, (work.shape[0], work.shape[1]), source_dtype)
    job = _Job(layout, work, generator=generator, seed=seed, shared={}, callback=callback)
    return job.coding, job.target()


class _Job:
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
        later = plan.model_copy(
            update={
                "residual": (),
                "transform": plan.transform[index + 1 :],
                "permutation": NoPermutation(),
                "scales": plan.scales.unsearched,
                "rounding": NearestRounding(),
                "dora": False,
            }
        )
        layout = layout_of(later, self.layout.shape, self.layout.source_dtype)

        def coded(matrix: Tensor) -> Tensor:
            sections = encode_matrix(
                later,
                matrix,
                seed=self.coding.seed,
                source_dtype=layout.source_dtype,
                layout=layout,
            ).sections
            decoder = MatrixDecoder(layout, sections, matrix.dtype)
            return torch.cat([decoder.rows(first, last) for first, last in decoder.panels()])

        return Trial(statistics=statistics, coded=coded)

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


def _joined(parts: Iterable[Sections]) -> Sections:
    """All sections of several residuals."""
    return {role: values for sections in parts for role, values in sections.items()}


def _moved(transform: MatrixTransform, metric: Metric | None) -> Metric | None:
    """The metric of T(W) by that of W."""
    if metric is None:
        return None
    outputs = None if metric.outputs is None else transform.gradient_gram(metric.outputs)
    return Metric(inputs=transform.gram(metric.inputs), outputs=outputs)


def _check_weight(weight: Tensor, first_row: int = 0) -> None:
    if weight.dim() != 2 or not weight.numel():
        raise CodecError(f"expected a matrix, got a tensor of shape {list(weight.shape)}")
    if not weight.is_floating_point():
        raise CodecError(f"expected floating-point weights, got {weight.dtype}")
    step = max(1, PANEL // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        rows = weight[first : first + step]
        if rows.element_size() == 1:
            rows = rows.to(torch.float32)
        finite = torch.isfinite(rows)
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            raise CodecError(
                f"the weight at row {first_row + first + row}, column {column} is "
                f"{float(rows[row, column])}",
                note="the error of a matrix with NaN or infinite values cannot be minimised",
                hint="repair the checkpoint, or `keep` this tensor",
            )
