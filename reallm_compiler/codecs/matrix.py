"""A whole matrix: the stages of its plan, one after the other, and back.

    encode: W -> take off R -> transforms -> encode -> code the latent -> (magnitudes)
    decode: latent -> decode -> transforms undone -> + R -> (rescale rows)

No method has a path of its own: `tables` say which codec a kind has. What happens to the latent is
in `latent`. Decoding goes by panels of rows that stay in cache; with the identity autoencoder
nothing of full size is made but the result. The relative error of a matrix is measured on what a
reader will decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reallm_compiler.codecs import dora, low_rank
from reallm_compiler.codecs.autoencoder import Coding
from reallm_compiler.codecs.latent import PANEL, LatentCoder, LatentReader, panels
from reallm_compiler.codecs.numbers import norm, unit
from reallm_compiler.codecs.sections import TORCH_DTYPES, Sections, check_sections
from reallm_compiler.codecs.tables import AUTOENCODERS, TRANSFORMS
from reallm_compiler.codecs.watch import Unwatched, Watch
from reallm_compiler.errors import CodecError
from reallm_compiler.layouts import matrix as law
from reallm_compiler.recipe.stages import LowRank, MatrixPlan, NoQuantizer

ALIGNMENT = 64
"""Bytes at a multiple of which a result begins, as torch's own tensors do."""


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
    watch: Watch | None = None,
    first_row: int = 0,
) -> Encoded:
    """Encodes a matrix by its plan.

    Args:
        plan: what to do.
        weight: [p, q], of any floating type, on any device; it is not changed.
        seed: of the matrix's own generator, from 0 to 2^63 - 1.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        shared: sections of the plan's share group, as `fit_shared` made them, or of the decoder
            that it reuses.
        watch: looks on the training of an autoencoder.
        first_row: number of the first row in messages, where `weight` is a part of a matrix.

    Returns:
        the sections that `layouts.matrix.sections` lists, less the shared ones, on the device of
        `weight`; and the relative error.

    Raises:
        CodecError: the weight is not a finite matrix, a stored type is too narrow for what it
            holds, or the sections are not those of the size law.
    """
    dtype = _work_dtype(source_dtype)
    _check_weight(weight, first_row)
    shape = (weight.shape[0], weight.shape[1])
    work = weight.detach().to(dtype).contiguous()
    common = dict(shared or {})
    if plan.share is not None and not common:
        raise CodecError(f"the sections of share group `{plan.share}` are missing")
    check_sections(
        {role: values for role, values in common.items() if plan.share is None},
        law.reused_sections(plan, shape),
    )
    coder = LatentCoder(
        plan=plan,
        shape=law.latent_shape(plan, shape),
        source_dtype=source_dtype,
        generator=torch.Generator().manual_seed(seed),
    )
    coding = Coding(coder=coder, shape=shape, seed=seed, shared=common, watch=watch or Unwatched())
    job = _Job(work, coding)
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
        sections: all section tensors by role, those of its share group and of a reused decoder
            too, on one device.
        dtype: type of the result; the work is done in float32 (float64 for a float64 source).

    Raises:
        CodecError: the sections are not those of the size law, or an index is out of range.
    """
    specs = law.sections(plan, shape, source_dtype) + law.reused_sections(plan, shape)
    check_sections(sections, specs)
    reader = MatrixReader(plan, shape, sections, _work_dtype(source_dtype))
    device = next(iter(sections.values())).device
    result = _fresh(shape, dtype, device)
    for first, last in reader.panels():
        reader.fill(result[first:last], first)
    return result


def fit_shared(
    plan: MatrixPlan, weights: Sequence[Tensor], *, seed: int, watch: Watch | None = None
) -> Sections:
    """Learns the sections that the matrices of a share group store once.

    Args:
        plan: the plan of the group; its matrices differ in shape only.
        weights: the group's matrices, each taken from the sequence once, in order.
        seed: of the group's generator.
        watch: looks on the training of a decoder.

    Raises:
        CodecError: the plan shares nothing, or a weight is not a finite matrix.
    """
    if plan.share is None or not len(weights):
        raise CodecError("a share group needs a plan with `share` and at least one matrix")
    generator = torch.Generator().manual_seed(seed)
    codec = AUTOENCODERS[type(plan.autoencoder)]
    # No frame in between holds a matrix while the codec has it, or while the next one is read.
    members = map(partial(_member, plan, generator, seed, watch or Unwatched()), weights)
    return codec.fit_shared(plan.autoencoder, members, len(weights), generator)


def _member(
    plan: MatrixPlan, generator: torch.Generator, seed: int, watch: Watch, weight: Tensor
) -> tuple[Coding, Tensor]:
    """What the autoencoder of one matrix of a group is given."""
    _check_weight(weight)
    source_dtype = "f64" if weight.dtype == torch.float64 else "f32"
    work = weight.detach().to(_work_dtype(source_dtype)).contiguous()
    shape = (work.shape[0], work.shape[1])
    coder = LatentCoder(
        plan=plan,
        shape=law.latent_shape(plan, shape),
        source_dtype=source_dtype,
        generator=generator,
    )
    coding = Coding(coder=coder, shape=shape, seed=seed, watch=watch)
    return coding, _Job(work, coding).target()


def _fresh(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a result [p, q].

    On the CPU it is NumPy's, which asks the system for huge pages from 4 MB on; torch does not.
    Where they are to be had, the first touch of a large result costs a fifth of the time, and
    in ordinary pages it would cost more than decoding.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)


class MatrixReader:
    """Decodes rows of a matrix: the one way back, for readers and for measuring.

    Args:
        plan: the plan that it was encoded by.
        shape: p and q.
        sections: all its section tensors by role; without `magnitude` rows are not rescaled.
        dtype: precision of the work.

    Attributes:
        coarse: fewer than 2 bits a weight: codes may rightly stand for nothing but zero.
    """

    def __init__(
        self,
        plan: MatrixPlan,
        shape: tuple[int, int],
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.coarse = not isinstance(plan.quantizer, NoQuantizer) and plan.quantizer.bits < 2
        self._shape = shape
        latent = LatentReader(plan, law.latent_shape(plan, shape), sections, dtype)
        codec = AUTOENCODERS[type(plan.autoencoder)]
        self._coded = codec.reader(plan.autoencoder, shape, sections, latent, dtype)
        self._undo = [
            TRANSFORMS[type(transform)].reader(transform, shape, sections, dtype)
            for transform in reversed(plan.transform)
        ]
        self._factors: tuple[Tensor, Tensor] | None = None
        if isinstance(plan.residual, LowRank) and "l1" in sections:
            self._factors = low_rank.decode(plan.residual, sections, dtype)
        self._magnitudes = sections.get("magnitude")

    def panels(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that may be decoded by themselves and fill the matrix."""
        step = math.lcm(self._coded.step, *(transform.step for transform in self._undo))
        return panels(self._shape, step)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the matrix, a fresh tensor [last - first, q]; see `panels`."""
        rows = self._coded.rows(first, last)
        for transform in self._undo:
            transform.restore_(rows, first)
        if self._factors is not None:
            left, right = self._factors
            rows.addmm_(left[first:last], right)
        if self._magnitudes is not None:
            dora.rescale_(rows, self._magnitudes[first:last])
        return rows

    def fill(self, out: Tensor, first: int) -> None:
        """Rows first, first + 1, ... of the matrix into `out` [n, q], of any floating type.

        The range of float16 is so small that weights near its end, a little off, would come back
        as infinities: they become its largest number.
        """
        later = self._undo or self._factors is not None or self._magnitudes is not None
        if isinstance(self._coded, LatentReader) and not later:
            self._coded.fill(out, first)
        else:
            out.copy_(self.rows(first, first + len(out)))
        if out.dtype == torch.float16:
            largest = torch.finfo(out.dtype).max
            out.clamp_(-largest, largest)


class _Job:
    """One matrix on its way through the stages."""

    def __init__(self, weight: Tensor, coding: Coding) -> None:
        self.plan = coding.coder.plan
        self.weight = weight
        self.coding = coding
        self.generator = coding.coder.generator

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
                factors = self._factors(residual, self._without_coded(coded))
                coded = self._code(self._without_factors(factors))
            else:
                coded = self._code(self._without_factors(factors))
                factors = self._factors(residual, self._without_coded(coded))
            sections = factors | coded
            if not alternating:
                return sections
            error = _relative_error(self.weight, self._reader(sections))
            if error >= best_error:
                break
            best, best_error = sections, error
        return best

    def target(self) -> Tensor:
        """What the autoencoder would see after one residual, a fresh tensor."""
        factors: Sections = {}
        residual = self.plan.residual
        if isinstance(residual, LowRank) and residual.order == "residual_first":
            factors = self._factors(residual, self.weight)
        target = self._without_factors(factors)
        return self._transform(target)[1]

    def magnitudes(self, sections: Sections) -> Tensor:
        """float16 [p]: the magnitudes of the rows of W^."""
        reader = self._reader(sections)
        parts = [
            dora.magnitude(self.weight[first:last], reader.rows(first, last))
            for first, last in reader.panels()
        ]
        return dora.stored(torch.cat(parts))

    def _factors(self, residual: LowRank, rest: Tensor) -> Sections:
        """Sections of the factors of W, or of what the coded part leaves of it."""
        return low_rank.encode(residual, rest, self.generator, norm(self.weight))

    def _transform(self, target: Tensor) -> tuple[Sections, Tensor]:
        """Sections of the transforms of `target` [p, q], and the outcome in its place."""
        sections: Sections = {}
        for transform in self.plan.transform:
            made, target = TRANSFORMS[type(transform)].encode(transform, target)
            sections |= made
        return sections, target

    def _code(self, target: Tensor) -> Sections:
        """Sections of the coded part of `target` [p, q], which is used up."""
        sections, target = self._transform(target)
        codec = AUTOENCODERS[type(self.plan.autoencoder)]
        return sections | codec.encode(self.plan.autoencoder, target, self.coding)

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
        common = dict(self.coding.shared)
        return MatrixReader(self.plan, self.coding.shape, sections | common, self.weight.dtype)


def _relative_error(weight: Tensor, reader: MatrixReader) -> float:
    """||W - W^|| / ||W||, sums in float64; 0 for a matrix of zeros.

    Raises:
        CodecError: nothing is left of a matrix that was something, though it has 2 bits a weight.
    """
    one = unit(weight)
    wrong = right = 0.0
    some = reader.coarse
    for first, last in reader.panels():
        rows = weight[first:last].to(torch.float64)
        decoded = reader.rows(first, last)
        some = some or bool(decoded.any())
        right += float((rows / one).square_().sum())
        wrong += float(((rows - decoded) / one).square_().sum())
    if right and not (some and math.isfinite(wrong)):
        what = "not finite" if some else "zero everywhere"
        raise CodecError(
            f"the coded matrix is {what}, and the weights are not: they reach "
            f"{float(weight.abs().max()):.6g}",
            hint="give the matrix scales and factors with `dtype: float32`, or `keep` it",
        )
    return math.sqrt(wrong / right) if right else 0.0


def _check_weight(weight: Tensor, first_row: int = 0) -> None:
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
                f"the weight at row {first_row + first + row}, column {column} is "
                f"{float(rows[row, column])}",
                note="a matrix with a NaN or an infinity has no error to minimise",
                hint="repair the checkpoint, or `keep` this tensor",
            )


def _work_dtype(source_dtype: str) -> torch.dtype:
    return torch.float64 if TORCH_DTYPES[source_dtype] == torch.float64 else torch.float32
