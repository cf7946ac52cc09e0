"""A whole matrix: the stages of its plan, one after the other, and back.

    encode: W -> take off R -> order the columns -> scales -> quantise -> (magnitudes)
    decode: codes -> levels or codewords -> s x + z -> columns back -> + R -> (rescale rows)

No method has a path of its own: a table says which codec a kind has. Decoding goes by panels of
rows that stay in cache; nothing of full size is made but the result. The relative error of a
matrix is measured on what a reader will decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs import (
    dora,
    k_means,
    low_rank,
    nearest,
    normal_float,
    scalar,
    scales,
    uniform,
    vq,
)
from reallm_compiler.codecs.scalar import Latent, RowReader
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections, check_sections
from reallm_compiler.errors import CodecError
from reallm_compiler.layouts import matrix as law
from reallm_compiler.recipe.stages import (
    LowRank,
    MatrixPlan,
    MinmaxScales,
    NearestPermutation,
    NoQuantizer,
    NormalFloatQuantizer,
    NoScales,
    UniformQuantizer,
    VectorQuantizer,
)

PANEL = 1 << 18
"""Weights of a panel of rows, about: a megabyte of float32."""

SHARED_VECTORS = 1 << 22
"""Vectors of a share group that its codebook is learned from, in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A coded matrix.

    Attributes:
        sections: section tensors by role, in storage order, without those of its share group.
        relative_error: ||W - W^|| / ||W|| by Frobenius, with W^ as decoded; 0 if W is zero.
    """

    sections: Sections
    relative_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerCodec:
    """The codec of a kind of quantiser.

    Attributes:
        encode: (params, latent) -> sections.
        reader: (params, shape, sections, dtype, unit_range) -> reader of rows.
    """

    encode: Callable[[Any, Latent], Sections]
    reader: Callable[[Any, tuple[int, int], Mapping[str, Tensor], torch.dtype, bool], RowReader]


QUANTIZERS: dict[type, QuantizerCodec] = {
    NoQuantizer: QuantizerCodec(encode=scalar.encode_values, reader=scalar.read_values),
    UniformQuantizer: QuantizerCodec(encode=uniform.encode, reader=uniform.reader),
    NormalFloatQuantizer: QuantizerCodec(encode=normal_float.encode, reader=normal_float.reader),
    VectorQuantizer: QuantizerCodec(encode=vq.encode, reader=vq.reader),
}
"""The codec of each kind of quantiser."""


def encode_matrix(
    plan: MatrixPlan,
    weight: Tensor,
    *,
    seed: int,
    source_dtype: str,
    shared: Mapping[str, Tensor] | None = None,
) -> Encoded:
    """Encodes a matrix by its plan.

    Args:
        plan: what to do.
        weight: [p, q], of any floating type, on any device; it is not changed.
        seed: of the matrix's own generator, from 0 to 2^63 - 1.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        shared: sections of the plan's share group, as `fit_shared` made them.

    Returns:
        the sections that `layouts.matrix.sections` lists, less the shared ones, on the device of
        `weight`; and the relative error.

    Raises:
        CodecError: the weight is not a finite matrix, a value overflows its stored type, or the
            sections are not those of the size law.
    """
    dtype = _work_dtype(source_dtype)
    _check_weight(weight)
    shape = (weight.shape[0], weight.shape[1])
    work = weight.detach().to(dtype).contiguous()
    common = dict(shared or {})
    if plan.share is not None and not common:
        raise CodecError(f"the sections of share group `{plan.share}` are missing")
    job = _Job(plan, work, source_dtype, torch.Generator().manual_seed(seed), common)
    sections = job.fit()
    specs = law.sections(plan, shape, source_dtype)
    if plan.dora:
        sections["magnitude"] = job.magnitudes(sections)
    own = [spec for spec in specs if not spec.shared]
    check_sections(sections, own)
    sections = {spec.role: sections[spec.role] for spec in own}
    reader = MatrixReader(plan, shape, sections | common, dtype)
    return Encoded(sections=sections, relative_error=_relative_error(work, reader))


def decode_matrix(
    plan: MatrixPlan,
    shape: tuple[int, int],
    source_dtype: str,
    sections: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Decodes a matrix [p, q].

    Args:
        plan: the plan that it was encoded by.
        shape: p and q.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        sections: all section tensors by role, those of its share group too, on one device.
        dtype: type of the result; the work is done in float32 (float64 for a float64 source).

    Raises:
        CodecError: the sections are not those of the size law, or an index is out of range.
    """
    check_sections(sections, law.sections(plan, shape, source_dtype))
    reader = MatrixReader(plan, shape, sections, _work_dtype(source_dtype))
    device = next(iter(sections.values())).device
    result = torch.empty(shape, dtype=dtype, device=device)
    for first, last in reader.panels():
        result[first:last] = reader.rows(first, last)
    return result


def fit_shared(plan: MatrixPlan, weights: Sequence[Tensor], *, seed: int) -> Sections:
    """Learns the sections that the matrices of a share group store once.

    Every matrix counts by its number of weights and relative to its own scales, so that one with
    large weights does not take the codebook for itself. Vectors are sampled, evenly from each.

    Args:
        plan: the plan of the group; its matrices differ in shape only.
        weights: the group's matrices, each taken from the sequence once, in order.
        seed: of the group's generator.

    Raises:
        CodecError: the plan shares nothing, or a weight is not a finite matrix.
    """
    quantizer = plan.quantizer
    if plan.share is None or not isinstance(quantizer, VectorQuantizer) or not len(weights):
        raise CodecError("a share group needs a plan with `share` and at least one matrix")
    generator = torch.Generator().manual_seed(seed)
    most = max(SHARED_VECTORS // len(weights), 1 << 10)
    values, masses = [], []
    for weight in weights:
        _check_weight(weight)
        dtype = _work_dtype("f64" if weight.dtype == torch.float64 else "f32")
        work = weight.detach().to(dtype).contiguous()
        job = _Job(plan, work, "f32", generator, {})
        vectors, mean_square = job.vectors(quantizer)
        sample = k_means.sampled(vectors, most, generator)
        each = vectors.count / sample.count / (mean_square or 1.0)
        mass = sample.values.new_ones(sample.values.shape)
        if sample.weights is not None:
            mass *= sample.weights if sample.weights.dim() == 2 else sample.weights[:, None]
        values.append(sample.values)
        masses.append(mass * each)
    group = k_means.DenseVectors(values=torch.cat(values), weights=torch.cat(masses))
    return {"codebook": vq.fit_codebook(quantizer, group, generator)}


class MatrixReader:
    """Decodes rows of a matrix: the one way back, for readers and for measuring.

    Args:
        plan: the plan that it was encoded by.
        shape: p and q.
        sections: all its section tensors by role; without `magnitude` rows are not rescaled.
        dtype: precision of the work.
    """

    def __init__(
        self,
        plan: MatrixPlan,
        shape: tuple[int, int],
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self._plan = plan
        self._shape = shape
        self._field = scales.decode(plan.scales, shape, sections, dtype)
        self._places = nearest.decode(plan.permutation, shape, sections)
        codec = QUANTIZERS[type(plan.quantizer)]
        unit_range = isinstance(plan.scales, MinmaxScales)
        self._codes = codec.reader(plan.quantizer, shape, sections, dtype, unit_range)
        self._factors: tuple[Tensor, Tensor] | None = None
        if isinstance(plan.residual, LowRank) and "l1" in sections:
            self._factors = low_rank.decode(plan.residual, sections, dtype)
        self._magnitudes = sections.get("magnitude")

    def panels(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that may be decoded by themselves and fill the matrix."""
        p, q = self._shape
        step = max(PANEL // q // self._codes.step, 1) * self._codes.step
        for first in range(0, p, step):
            yield first, min(first + step, p)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the matrix, a fresh tensor [last - first, q]; see `panels`."""
        rows = self._codes.rows(first, last)
        if self._field is not None:
            self._field.restore_(rows, first)
        if self._places is not None:
            assert isinstance(self._plan.permutation, NearestPermutation)
            rows = nearest.restore(self._plan.permutation, rows, first, self._places)
        if self._factors is not None:
            left, right = self._factors
            rows.addmm_(left[first:last], right)
        if self._magnitudes is not None:
            dora.rescale_(rows, self._magnitudes[first:last])
        return rows


class _Job:
    """One matrix on its way through the stages."""

    def __init__(
        self,
        plan: MatrixPlan,
        weight: Tensor,
        source_dtype: str,
        generator: torch.Generator,
        shared: Sections,
    ) -> None:
        self.plan = plan
        self.weight = weight
        self.shape = (weight.shape[0], weight.shape[1])
        self.source_dtype = source_dtype
        self.generator = generator
        self.shared = shared

    def fit(self) -> Sections:
        """Sections of the residual and of the coded part."""
        residual = self.plan.residual
        if not isinstance(residual, LowRank):
            return self._code(self.weight.clone())
        alternating = residual.fit == "alternating"
        best: Sections = {}
        best_error = math.inf
        factors: Sections = {}
        coded: Sections = {}
        for _ in range(residual.iterations if alternating else 1):
            if residual.order == "residual_first":
                factors = low_rank.encode(residual, self._without_coded(coded), self.generator)
                coded = self._code(self._without_factors(factors))
            else:
                coded = self._code(self._without_factors(factors))
                factors = low_rank.encode(residual, self._without_coded(coded), self.generator)
            sections = factors | coded
            if not alternating:
                return sections
            error = _relative_error(self.weight, self._reader(sections))
            if error >= best_error:
                break
            best, best_error = sections, error
        return best

    def vectors(self, quantizer: VectorQuantizer) -> tuple[vq.MatrixVectors, float]:
        """The vectors that a quantiser would see after one residual, and the mean s^2."""
        target = self.weight.clone()
        residual = self.plan.residual
        if isinstance(residual, LowRank) and residual.order == "residual_first":
            target = self._without_factors(
                low_rank.encode(residual, self.weight, self.generator)
            )
        _, latent, field = self._prepare(target)
        mean_square = 1.0 if field is None else field.mean_square()
        if field is None:
            mean_square = float(latent.square().mean(dtype=torch.float64))
        return vq.MatrixVectors(quantizer, latent, field), mean_square

    def magnitudes(self, sections: Sections) -> Tensor:
        """float16 [p]: the magnitudes of the rows of W^."""
        reader = self._reader(sections)
        parts = [
            dora.magnitude(self.weight[first:last], reader.rows(first, last))
            for first, last in reader.panels()
        ]
        return dora.stored(torch.cat(parts))

    def _prepare(self, target: Tensor) -> tuple[Sections, Tensor, scales.ScaleField | None]:
        """Orders and normalises `target`, which is used up."""
        plan = self.plan
        sections: Sections = {}
        if isinstance(plan.permutation, NearestPermutation):
            sections, places = nearest.encode(plan.permutation, target)
            target = nearest.permute(plan.permutation, target, places)
        if isinstance(plan.scales, NoScales):
            return sections, target, None
        sections = sections | scales.encode(plan.scales, target)
        field = scales.decode(plan.scales, self.shape, sections, target.dtype)
        assert field is not None
        return sections, field.normalise_(target), field

    def _code(self, target: Tensor) -> Sections:
        """Sections of the coded part of `target` [p, q], which is used up."""
        sections, values, field = self._prepare(target)
        latent = Latent(
            values=values,
            scales=field,
            unit_range=isinstance(self.plan.scales, MinmaxScales),
            source_dtype=self.source_dtype,
            generator=self.generator,
            codebook=self.shared.get("codebook"),
        )
        codec = QUANTIZERS[type(self.plan.quantizer)]
        return sections | codec.encode(self.plan.quantizer, latent)

    def _without_factors(self, factors: Sections) -> Tensor:
        """W - L1 L2 with the factors as stored; a copy of W without factors."""
        if not factors:
            return self.weight.clone()
        assert isinstance(self.plan.residual, LowRank)
        left, right = low_rank.decode(self.plan.residual, factors, self.weight.dtype)
        return torch.addmm(self.weight, left, right, alpha=-1)

    def _without_coded(self, coded: Sections) -> Tensor:
        """W less the coded part; W itself without one."""
        if not coded:
            return self.weight
        reader = self._reader(coded)
        rest = torch.empty_like(self.weight)
        for first, last in reader.panels():
            torch.sub(self.weight[first:last], reader.rows(first, last), out=rest[first:last])
        return rest

    def _reader(self, sections: Sections) -> MatrixReader:
        return MatrixReader(self.plan, self.shape, sections | self.shared, self.weight.dtype)


def _relative_error(weight: Tensor, reader: MatrixReader) -> float:
    """||W - W^|| / ||W||, sums in float64; 0 for a matrix of zeros."""
    wrong = right = 0.0
    for first, last in reader.panels():
        rows = weight[first:last].to(torch.float64)
        right += float(rows.square().sum())
        wrong += float((rows - reader.rows(first, last)).square_().sum())
    return math.sqrt(wrong / right) if right else 0.0


def _check_weight(weight: Tensor) -> None:
    if weight.dim() != 2 or not weight.numel():
        raise CodecError(f"a matrix is wanted, not a tensor of shape {list(weight.shape)}")
    if not weight.is_floating_point():
        raise CodecError(f"weights are wanted as floating-point numbers, not {weight.dtype}")
    step = max(1, PANEL // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        rows = weight[first : first + step]
        if rows.element_size() == 1:
            rows = rows.to(torch.float32)
        finite = torch.isfinite(rows)
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            raise CodecError(
                f"the weight at row {first + row}, column {column} is "
                f"{float(rows[row, column])}",
                note="a matrix with a NaN or an infinity has no error to minimise",
                hint="repair the checkpoint, or `keep` this tensor",
            )


def _work_dtype(source_dtype: str) -> torch.dtype:
    return torch.float64 if TORCH_DTYPES[source_dtype] == torch.float64 else torch.float32
