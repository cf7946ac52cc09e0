"""A matrix that learns while its block follows the original: what `fit` may change of it.

Every number that a matrix stores can learn under held codes (`codecs.gradient`). Where codes are
made anew in each step, the same decoder is given the quantized latent itself in their place:

    y = (x - z) / s + v step,    y^ = nearest level of y,    W^ = decode(s y^ + z)

x [p, q] is the latent, s and z its scales, which follow the ends of each group's range, and v in
[-1/2, 1/2] an offset of each weight. Where the factors of a transform learn, x moves as well.
Gradients pass from y^ to y as they are between the outermost levels, and not at all beyond
(straight-through).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.codecs.column_coder import ColumnCoder
from reallm_compiler.codecs.contract import ColumnOrder, Latent
from reallm_compiler.codecs.decode import decode_matrix, residual_terms
from reallm_compiler.codecs.gradient import decode_tracked
from reallm_compiler.codecs.learned import LearnedNumbers
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.scale_field import ScaleField
from reallm_compiler.codecs.scales import extremes
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.planning.fit import learnable_in, learned_specs
from reallm_compiler.stages import Learnable, NoQuantizer
from reallm_compiler.storage.matrix import MatrixLayout, layout_of


class LearnedMatrix(nn.Module):
    """One matrix of a block.

    Args:
        layout: of the matrix.
        weight: [p, q], the matrix itself.
        sections: all of its sections as it was coded first, those of its share group too.
        learn: what may change.
    """

    def __init__(
        self,
        layout: MatrixLayout,
        weight: Tensor,
        sections: Mapping[str, Tensor],
        learn: Sequence[Learnable],
    ) -> None:
        super().__init__()
        learn = learnable_in(layout, learn)
        self._layout = layout
        self._sections = dict(sections)
        self._numbers: dict[str, tuple[Learnable, LearnedNumbers]] = {
            spec.role: (learnable, LearnedNumbers(spec, sections[spec.role]))
            for learnable, specs in learned_specs(layout, learn).items()
            for spec in specs
        }
        self.numbers = nn.ModuleList(numbers for _, numbers in self._numbers.values())
        self._anew: _Codes | None = None
        if {"rounding", "clip"} & set(learn):
            self._anew = _Codes(layout, weight, sections, learn)
        self._fixed: Tensor | None = None
        if not learn:
            self._fixed = decode_matrix(
                layout.plan,
                layout.shape,
                layout.source_dtype,
                sections,
                dtype=torch.float32,
                layout=layout,
            )

    def learned(self) -> Iterator[tuple[str, Learnable, nn.Parameter]]:
        """What learns: its name, the entry of `learn` that names it, the parameter."""
        for role, (learnable, numbers) in self._numbers.items():
            yield role, learnable, numbers.theta
        if self._anew is not None:
            yield from self._anew.learned()

    def forward(self) -> Tensor:
        """W^ [p, q] in float32, whose graph ends in what learns."""
        if self._fixed is not None:
            return self._fixed
        numbers = {role: one.values() for role, (_, one) in self._numbers.items()}
        if self._anew is None:
            held = {role: own for role, own in self._sections.items() if role not in numbers}
            return decode_tracked(self._layout, held, numbers)
        return self._anew.decode(self._sections, numbers)

    @torch.no_grad()
    def project_(self) -> None:
        """Put what learns within bounds back into them, after a step."""
        if self._anew is not None:
            self._anew.project_()

    @torch.no_grad()
    def sections(self) -> Sections:
        """All sections as they will be stored; those of its share group too."""
        stored = {role: one.stored() for role, (_, one) in self._numbers.items()}
        stored = {role: one.to(self._sections[role].device) for role, one in stored.items()}
        sections = {**self._sections, **stored}
        return sections if self._anew is None else {**sections, **self._anew.sections(sections)}


class _Codes(nn.Module):
    """Codes that are made anew in each step, of a latent with the scales of its clipped range.

    Args:
        layout, weight, sections, learn: as of `LearnedMatrix`.
    """

    def __init__(
        self,
        layout: MatrixLayout,
        weight: Tensor,
        sections: Mapping[str, Tensor],
        learn: Collection[Learnable],
    ) -> None:
        super().__init__()
        plan, shape = layout.plan, layout.shape
        self._plan, self._shape = plan, shape
        self._source_dtype = layout.source_dtype
        rest = weight.to(torch.float32, copy=True)
        before = [stage for stage in plan.residual if stage.first]  # what the quantizer never saw
        for term in residual_terms(before, shape, sections, torch.float32):
            rest = term.taken_from(rest)
        self._rest = rest
        order = codec_of(plan.permutation).decoder(plan.permutation, shape, sections)
        self._coded_index = None if order is None else _coded_index(shape, order).to(rest.device)
        self._fixed: Tensor | None = None
        self._moved: Tensor | None = None
        self._ends_moved: tuple[Tensor, Tensor] | None = None
        free = plan.model_copy(update={"quantizer": NoQuantizer(dtype="float32")})
        self._decoding = layout_of(free, shape, layout.source_dtype)
        (self._role,) = (spec.role for spec in self._decoding.sections_of(free.quantizer))
        levels = codec_of(plan.quantizer).levels(plan.quantizer, plan.scales.range)
        self._low, self._high = float(levels[0]), float(levels[-1])
        self._step = float(levels[1] - levels[0])
        self.clip: nn.Parameter | None = None
        self.offsets: nn.Parameter | None = None
        if "clip" in learn:
            groups = len(self._ends(self._latent(sections))[0])
            self.clip = nn.Parameter(torch.ones(2, groups).to(weight.device))
        self._begin(sections)
        if "channel_scale" not in learn:
            self._fixed = self._latent(sections)
        if "rounding" in learn:
            self.offsets = nn.Parameter(torch.zeros_like(rest))

    def learned(self) -> Iterator[tuple[str, Learnable, nn.Parameter]]:
        if self.clip is not None:
            yield "clip", "clip", self.clip
        if self.offsets is not None:
            yield "rounding", "rounding", self.offsets

    def decode(self, sections: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> Tensor:
        """W^ [p, q]; `numbers` are those sections that learn as numbers."""
        latent = self._latent({**sections, **numbers})
        scales = self._scales(latent)
        floats = {role: one for role, one in scales.items() if one.is_floating_point()}
        given = {**sections, **scales, **numbers}
        y = self._normalized(latent, given)
        inside = y.clamp(self._low, self._high)
        _, nearest = self._coder(y.detach()).quantize(y.detach(), slice(0, self._shape[1]))
        assert nearest is not None  # it was asked for
        quantized = inside + (nearest - inside).detach()
        tracked = {**floats, **numbers, self._role: quantized}
        roles = {spec.role for spec in self._decoding.sections}
        held = {role: own for role, own in given.items() if role in roles - tracked.keys()}
        return decode_tracked(self._decoding, held, tracked)

    def sections(self, sections: Mapping[str, Tensor]) -> Sections:
        """Scales and codes as they will be stored, given all that is stored beside them."""
        latent = self._latent(sections)
        scales = self._scales(latent)
        y = self._normalized(latent, {**sections, **scales})
        coder = self._coder(y)
        coder.quantize(y, slice(0, self._shape[1]), decode=False)
        stored = {
            role: one.to(sections[role].dtype) if one.is_floating_point() else one
            for role, one in scales.items()
        }
        return {**stored, **coder.sections()}

    def project_(self) -> None:
        if self.clip is not None:
            self.clip.clamp_(0, 1)
        if self.offsets is not None:
            self.offsets.clamp_(-0.5, 0.5)

    def _latent(self, sections: Mapping[str, Tensor]) -> Tensor:
        """x [p, q]: the matrix less residuals, transformed, in the order that is coded."""
        if self._fixed is not None:
            return self._fixed
        latent = self._rest.clone()
        for params in self._plan.transform:
            transform = codec_of(params).decoder(params, self._shape, sections, torch.float32)
            latent = transform.apply_(latent)
        if self._coded_index is not None:
            latent = latent.view(-1)[self._coded_index].view(self._shape)
        return latent if self._moved is None else latent + self._moved

    @torch.no_grad()
    def _begin(self, sections: Mapping[str, Tensor]) -> None:
        """Move ends of groups, and numbers of the latent, to where they were coded from.

        A residual that was fitted anew after the codes, such as outliers, leaves something else.
        """
        plan, shape = self._plan, self._shape
        latent = self._latent(sections)
        self._begin_ends(latent, sections)
        y = self._normalized(latent, sections)
        _, nearest = self._coder(y).quantize(y, slice(0, shape[1]))
        decoder = codec_of(plan.quantizer).decoder(
            plan.quantizer, shape, sections, torch.float32, plan.scales.range
        )
        coded: Tensor = decoder.rows(0, shape[0])  # [p, q]
        if nearest is not None and not torch.equal(coded, nearest):
            steps = (coded - y) * self._scale_and_zero(sections)[0]
            self._moved = torch.where(coded == nearest, 0.0, steps)

    def _begin_ends(self, latent: Tensor, sections: Mapping[str, Tensor]) -> None:
        """Move the ends of those groups whose stored scales span another range."""
        made = self._scales(latent)
        if all(
            torch.equal(one.to(sections[role].dtype), sections[role]) for role, one in made.items()
        ):
            return
        stored, spanned = self._spans(sections), self._spans({**sections, **made})
        found = self._ends(latent)
        self._ends_moved = (
            torch.where(stored[0] == spanned[0], 0.0, stored[0] - found[0]),
            torch.where(stored[1] == spanned[1], 0.0, stored[1] - found[1]),
        )

    def _spans(self, sections: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the outermost levels of each group decode to, each [groups]."""
        params: Any = self._plan.scales
        scale, zero = self._scale_and_zero(sections)
        middle = 0.0 if zero is None else zero
        least, _ = extremes(params, self._low * scale + middle)
        _, largest = extremes(params, self._high * scale + middle)
        return least, largest

    def _ends(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest value of each group, each [groups]."""
        scales: Any = self._plan.scales  # one with groups, as `from_ends` says
        least, largest = extremes(scales, latent)
        if self._ends_moved is None:
            return least, largest
        return least + self._ends_moved[0], largest + self._ends_moved[1]

    def _scales(self, latent: Tensor) -> Sections:
        """Sections of the scales of the clipped range; none where they do not learn so."""
        if self.clip is None:
            return {}
        least, largest = self._ends(latent)
        made: Sections = codec_of(self._plan.scales).between(
            self._plan.scales, least * self.clip[0], largest * self.clip[1]
        )
        return made

    def _scale_and_zero(self, sections: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Of each number of the latent, [p, q]; None where there are no zeros."""
        params = self._plan.scales
        field: ScaleField = codec_of(params).decoder(params, self._shape, sections, torch.float32)
        return field.rows(0, self._shape[0]), field.zero_rows(0, self._shape[0])

    def _normalized(self, latent: Tensor, sections: Mapping[str, Tensor]) -> Tensor:
        """y [p, q]."""
        scale, zero = self._scale_and_zero(sections)
        centred = latent if zero is None else latent - zero
        y = torch.where(scale > 0, centred / torch.where(scale > 0, scale, 1.0), 0.0)
        return y if self.offsets is None else y + self._step * self.offsets

    def _coder(self, y: Tensor) -> ColumnCoder:
        """Codes y."""
        latent = Latent(
            values=y,
            scales=None,
            range=self._plan.scales.range,
            source_dtype=self._source_dtype,
            generator=torch.Generator(),
            quantizer=self._plan.quantizer,
        )
        coder: ColumnCoder = codec_of(self._plan.quantizer).coder(self._plan.quantizer, latent, {})
        return coder


def _coded_index(shape: tuple[int, int], order: ColumnOrder) -> Tensor:
    """int64 [p q]: where each number of the coded latent stands in the latent [p, q]."""
    count = shape[0] * shape[1]
    numbered = torch.arange(count, dtype=torch.float64).view(shape)
    coded = order.restore(numbered, 0).to(torch.int64).view(-1)
    return torch.empty_like(coded).scatter_(0, coded, torch.arange(count))
