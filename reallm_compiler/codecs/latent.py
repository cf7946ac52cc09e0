"""The latent of a matrix on its way through permutation, scales and quantiser, and back.

    encode: latent -> order the columns -> scales -> quantise
    decode: codes -> levels or codewords -> s x + z -> columns back

With the identity autoencoder the latent is the matrix itself, with a trained one it is the matrix
of all latents of its patches: these stages need not know. Decoding goes by panels of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs import (
    nearest,
    normal_float,
    scalar,
    scales,
    trellis,
    uniform,
    vq,
)
from reallm_compiler.codecs.numbers import unit
from reallm_compiler.codecs.scalar import Latent, RowReader
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.vectors import DenseVectors, sampled_places
from reallm_compiler.errors import CodecError
from reallm_compiler.layouts.vq import code_shape
from reallm_compiler.recipe.stages import (
    MatrixPlan,
    MinmaxScales,
    NearestPermutation,
    NoQuantizer,
    NormalFloatQuantizer,
    NoScales,
    TrellisQuantizer,
    UniformQuantizer,
    VectorQuantizer,
)

PANEL = 1 << 18
"""Weights of a panel of rows, about: a megabyte of float32."""

SHARED_VECTORS = 1 << 22
"""Vectors of several latents that a common codebook is learned from, in all."""

LEAST_VECTORS = 1 << 10
"""Vectors of each latent, at least, where it has as many."""

PICKED = 1 << 16
"""Vectors that are picked from a latent at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerCodec:
    """The codec of a kind of quantiser.

    Attributes:
        encode: (params, latent) -> sections.
        reader: (params, shape, sections, dtype, unit_range) -> reader of rows.
        reach: params -> how many deviations of a normal latent its levels shall span; 1 where
            levels are learned.
    """

    encode: Callable[[Any, Latent], Sections]
    reader: Callable[[Any, tuple[int, int], Mapping[str, Tensor], torch.dtype, bool], RowReader]
    reach: Callable[[Any], float] = lambda params: 1.0


QUANTIZERS: dict[type, QuantizerCodec] = {
    NoQuantizer: QuantizerCodec(encode=scalar.encode_values, reader=scalar.read_values),
    UniformQuantizer: QuantizerCodec(
        encode=uniform.encode, reader=uniform.reader, reach=uniform.reach
    ),
    NormalFloatQuantizer: QuantizerCodec(
        encode=normal_float.encode, reader=normal_float.reader, reach=normal_float.reach
    ),
    VectorQuantizer: QuantizerCodec(encode=vq.encode, reader=vq.reader),
    TrellisQuantizer: QuantizerCodec(encode=trellis.encode, reader=trellis.reader),
}
"""The codec of each kind of quantiser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentCoder:
    """Codes latents of one shape by the later stages of a plan.

    Attributes:
        plan: whose permutation, scales and quantizer are meant.
        shape: rows and columns of the latent.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        generator: the matrix's own source of random numbers, on the CPU.
    """

    plan: MatrixPlan
    shape: tuple[int, int]
    source_dtype: str
    generator: torch.Generator

    def encode(self, latent: Tensor, codebook: Tensor | None) -> Sections:
        """Sections of a latent of the coder's shape, which is used up.

        Args:
            latent: float32, or float64 for a float64 source.
            codebook: as stored; None to learn one if the plan has one.
        """
        sections, values, field = self._prepare(latent)
        given = Latent(
            values=values,
            scales=field,
            unit_range=isinstance(self.plan.scales, MinmaxScales),
            source_dtype=self.source_dtype,
            generator=self.generator,
            codebook=codebook,
        )
        codec = QUANTIZERS[type(self.plan.quantizer)]
        return sections | codec.encode(self.plan.quantizer, given)

    def reader(self, sections: Mapping[str, Tensor], dtype: torch.dtype) -> LatentReader:
        """A reader of coded latents."""
        return LatentReader(self.plan, self.shape, sections, dtype)

    def vectors(self, quantizer: VectorQuantizer, latent: Tensor) -> vq.MatrixVectors:
        """The vectors of a latent, which is used up, as its quantiser sees them."""
        _, values, field = self._prepare(latent)
        return vq.MatrixVectors(quantizer, values, field)

    def segments(
        self, quantizer: TrellisQuantizer, latent: Tensor, sharers: int
    ) -> list[trellis.Segments]:
        """Segments of a latent, which is used up, for the tables that `sharers` latents share."""
        _, values, field = self._prepare(latent)
        return trellis.sample(quantizer, values, field, sharers, self.generator)

    def _prepare(self, latent: Tensor) -> tuple[Sections, Tensor, scales.ScaleField | None]:
        """Orders and normalises a latent, which is used up."""
        plan = self.plan
        sections: Sections = {}
        if isinstance(plan.permutation, NearestPermutation):
            sections, places = nearest.encode(plan.permutation, latent)
            latent = nearest.permute(plan.permutation, latent, places)
        if isinstance(plan.scales, NoScales):
            if not isinstance(plan.quantizer, NoQuantizer) and unit(latent) != 1:
                raise CodecError(
                    f"numbers up to {float(latent.abs().max()):.6g} are coded without scales, and "
                    "float32 does not hold their squares, by which codes are chosen",
                    hint="give the matrix `scales`, such as `{kind: rms, per: tensor}`",
                )
            return sections, latent, None
        reach = QUANTIZERS[type(plan.quantizer)].reach(plan.quantizer)
        sections = sections | scales.encode(plan.scales, latent, reach=reach)
        field = scales.decode(plan.scales, self.shape, sections, latent.dtype)
        assert field is not None
        return sections, field.normalise_(latent), field


class LatentReader:
    """Decodes rows of a latent (`scalar.RowReader`).

    Args:
        plan: whose permutation, scales and quantizer are meant.
        shape: rows and columns of the latent.
        sections: its section tensors by role, the codebook of its group too.
        dtype: precision of the work.

    Attributes:
        plan: likewise.
        step: rows at a multiple of which a range must begin.
    """

    def __init__(
        self,
        plan: MatrixPlan,
        shape: tuple[int, int],
        sections: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.plan = plan
        self._shape = shape
        self._field = scales.decode(plan.scales, shape, sections, dtype)
        self._places = nearest.decode(plan.permutation, shape, sections)
        codec = QUANTIZERS[type(plan.quantizer)]
        unit_range = isinstance(plan.scales, MinmaxScales)
        self._codes = codec.reader(plan.quantizer, shape, sections, dtype, unit_range)
        self.step = self._codes.step

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the latent, a fresh tensor; `first` is a multiple of `step`."""
        rows = self._codes.rows(first, last)
        if self._field is not None:
            self._field.restore_(rows, first)
        if self._places is not None:
            assert isinstance(self.plan.permutation, NearestPermutation)
            rows = nearest.restore(self.plan.permutation, rows, first, self._places)
        return rows

    def fill(self, out: Tensor, first: int) -> None:
        """Rows first, first + 1, ... of the latent into `out` [n, q], of any floating type."""
        codes, field = self._codes, self._field
        done = False
        if self._places is None and field is not None and isinstance(codes, scalar.TableReader):
            done = codes.fill(out, first, field)
        if not done:
            out.copy_(self.rows(first, first + len(out)))

    def whole(self) -> Tensor:
        """The latent, a fresh tensor."""
        return torch.cat([self.rows(first, last) for first, last in panels(self._shape, self.step)])


def panels(shape: tuple[int, int], step: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that may be decoded by themselves and fill a matrix [p, q]."""
    p, q = shape
    size = max(PANEL // q // step, 1) * step
    for first in range(0, p, size):
        yield first, min(first + size, p)


def learn_codebook(
    latents: Iterable[tuple[LatentCoder, Tensor]], count: int, generator: torch.Generator
) -> Tensor:
    """A common codebook of several latents, in its stored type.

    What is made small is the sum of the latents' relative errors, each counted by its number of
    weights, so that one with large weights does not take the codebook for itself. Vectors are
    sampled, as many from each.

    Args:
        latents: coders of one plan, each with its latent, which is used up.
        count: how many there are.
        generator: of the group.
    """
    most = max(SHARED_VECTORS // count, LEAST_VECTORS)
    quantizer: VectorQuantizer | TrellisQuantizer | None = None
    pieces: list[list[trellis.Segments]] = []
    group: _Sample | None = None
    for coder, latent in latents:
        assert isinstance(coder.plan.quantizer, VectorQuantizer | TrellisQuantizer)
        quantizer = coder.plan.quantizer
        if isinstance(quantizer, TrellisQuantizer):
            pieces.append(coder.segments(quantizer, latent, count))
        else:
            group = group or _Sample(latent, count * most, quantizer.dim)
            group.add(coder.vectors(quantizer, latent), most, generator)
        del latent  # before the next one is made
    if isinstance(quantizer, TrellisQuantizer):
        joined = [trellis.Segments.joined(parts) for parts in zip(*pieces, strict=True)]
        return trellis.fit_tables(quantizer, joined, generator)
    if quantizer is None or group is None:
        raise CodecError("a codebook needs at least one matrix")
    return vq.fit_codebook(quantizer, group.vectors(), generator)


def sample_bytes(plan: MatrixPlan, shapes: Sequence[tuple[int, int]]) -> int:
    """Memory of what `learn_codebook` gathers for latents of these shapes, in float32."""
    quantizer = plan.quantizer
    if isinstance(quantizer, TrellisQuantizer):
        joined = 2 * trellis.sample_segments(quantizer, len(shapes)) * len(shapes)
        return joined * len(quantizer.widths) * 8 * trellis.SEGMENT
    if not isinstance(quantizer, VectorQuantizer):
        return 0
    most = max(SHARED_VECTORS // len(shapes), LEAST_VECTORS)
    counts = (math.prod(code_shape(quantizer, shape)) for shape in shapes)
    return sum(min(count, most) for count in counts) * quantizer.dim * 8


class _Sample:
    """Weighted vectors of several latents, gathered in one place.

    Args:
        like: a latent, of whose type and device the vectors are.
        most: the most vectors that will come.
        dim: their dimension.
    """

    def __init__(self, like: Tensor, most: int, dim: int) -> None:
        # Memory that is never touched costs nothing, and nothing need be joined afterwards.
        self._values = like.new_empty(most, dim)
        self._masses = like.new_empty(most, dim)
        self._count = 0

    def add(self, vectors: vq.MatrixVectors, most: int, generator: torch.Generator) -> None:
        """Take at most `most` of a latent's vectors, by their share of its energy."""
        first = self._count
        for place in torch.split(sampled_places(vectors, most, generator), PICKED):
            values, weights = vectors.pick(place)
            self._widen(values.dtype)
            span = slice(self._count, self._count + len(place))
            self._values[span] = values
            self._masses[span] = 1.0 if weights is None else weights.view(len(place), -1)
            self._count += len(place)
        values, masses = self._values[first : self._count], self._masses[first : self._count]
        energy = float(values.square().mul_(masses).sum(dtype=torch.float64))
        masses *= vectors.count / energy if energy else 0.0

    def _widen(self, dtype: torch.dtype) -> None:
        """Go over to float64 with the first latent of that type."""
        if torch.promote_types(self._values.dtype, dtype) != self._values.dtype:
            self._values, self._masses = self._values.to(dtype), self._masses.to(dtype)

    def vectors(self) -> DenseVectors:
        """All that was taken."""
        return DenseVectors(values=self._values[: self._count], weights=self._masses[: self._count])
