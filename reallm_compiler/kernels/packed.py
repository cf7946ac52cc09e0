"""A coded matrix in its sections, as an archive or a folder of tensors holds it, and its checks.

All that a kernel needs to know follows from a `PackedMatrix`. `check_packed` is the one check
between bytes that may be hostile and code that counts on them: sections of other types or extents
than the size law asks for, strides, values that mean nothing (a mask with too many columns, an
order that is no permutation). What passes it cannot lead a kernel outside of a section.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from reallm_compiler.codecs.sections import TORCH_DTYPES, check_sections
from reallm_compiler.errors import CodecError, FormatError
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage import dora
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import MatrixLayout, layout_of
from reallm_formats.dtypes import BITS


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedForm:
    """What a packed matrix is, without its numbers.

    Attributes:
        layout: plan, shape and source type, and the sections that they ask for.
        column_gain: whether tuning has added gains of columns.
    """

    layout: MatrixLayout
    column_gain: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q), rows are outputs."""
        return self.layout.shape

    @cached_property
    def specs(self) -> tuple[SectionSpec, ...]:
        """All sections in order, those of a share group and of a reused decoder included."""
        tuned = dora.column_sections(self.shape) if self.column_gain else []
        return (*self.layout.sections, *self.layout.reused_sections, *tuned)

    @cached_property
    def text(self) -> str:
        """The form as JSON, by which ops and saved graphs know it; see `parse_form`."""
        return json.dumps(
            {
                "plan": self.layout.plan.plain(),
                "shape": list(self.shape),
                "dtype": self.layout.source_dtype,
                "column_gain": self.column_gain,
            },
            sort_keys=True,
        )

    def with_sections(self, sections: Sequence[Tensor]) -> PackedMatrix:
        """The matrix of these tensors, in the order of `specs`.

        Raises:
            FormatError: there are more or fewer.
        """
        if len(sections) != len(self.specs):
            raise FormatError(
                "P4", f"{len(sections)} sections are given, and the plan asks for {len(self.specs)}"
            )
        roles = (spec.role for spec in self.specs)
        return PackedMatrix(form=self, sections=dict(zip(roles, sections, strict=True)))


@lru_cache(maxsize=4096)
def parse_form(text: str) -> PackedForm:
    """The form that `PackedForm.text` wrote.

    Raises:
        FormatError: it is none, or its plan cannot code such a matrix.
    """
    try:
        plain: Any = json.loads(text)
        plan = MatrixPlan.model_validate(plain["plan"])
        rows, columns = (int(extent) for extent in plain["shape"])
        dtype, column_gain = str(plain["dtype"]), bool(plain["column_gain"])
    except (ValidationError, ValueError, TypeError, KeyError, OverflowError) as error:
        first = str(error).splitlines()[0]
        raise FormatError("P1", f"this is not the form of a packed matrix: {first}") from None
    if min(rows, columns) < 1 or dtype not in TORCH_DTYPES:
        raise FormatError("P1", f"no matrix is {rows} x {columns} of type {dtype}")
    layout = layout_of(plan, (rows, columns), dtype)
    if layout.refusal is not None:
        raise FormatError("P1", layout.refusal[1])
    form = PackedForm(layout=layout, column_gain=column_gain)
    strange = next((spec for spec in form.specs if spec.dtype not in BITS), None)
    if strange is not None:
        raise FormatError("P1", f"section `{strange.role}` would have the type {strange.dtype}")
    return form


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedMatrix:
    """A coded matrix in its sections.

    Attributes:
        form: what it is.
        sections: its section tensors by role, in their stored types (packed codes are uint8 of one
            dimension), on one device.
    """

    form: PackedForm
    sections: Mapping[str, Tensor]

    @property
    def layout(self) -> MatrixLayout:
        """Plan, shape and source type, and the sections that they ask for."""
        return self.form.layout

    @property
    def plan(self) -> MatrixPlan:
        """The stages."""
        return self.form.layout.plan

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q), rows are outputs."""
        return self.form.shape

    @property
    def device(self) -> torch.device:
        """Where its sections are."""
        return next(iter(self.sections.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of its sections, shared ones included."""
        return sum(section.nbytes for section in self.sections.values())


def check_packed(packed: PackedMatrix) -> None:
    """Hold a packed matrix against its size law and the value rules of its sections.

    Raises:
        FormatError: a section is missing, has another type or extents, does not lie in one piece
            or on the device of the others (P4), or holds what it cannot mean (P5).
    """
    try:
        check_sections(packed.sections, packed.form.specs)
    except CodecError as error:
        raise FormatError("P4", error.message) from None
    for spec in packed.form.specs:
        section = packed.sections[spec.role]
        if not section.is_contiguous():
            raise FormatError("P4", f"section `{spec.role}` does not lie in one piece")
        if section.device != packed.device:
            raise FormatError(
                "P4", f"section `{spec.role}` is on {section.device}, others on {packed.device}"
            )
        if section.untyped_storage().nbytes() < section.nbytes:
            raise FormatError("P4", f"section `{spec.role}` is longer than its memory")
        problem = spec.values.problem(_bytes_of(section), spec.dtype, spec.shape)
        if problem is not None:
            raise FormatError("P5", f"section `{spec.role}`: {problem}")


def _bytes_of(section: Tensor) -> memoryview:
    if not section.numel():
        return memoryview(b"")
    flat = section.detach().cpu().as_strided((section.numel(),), (1,))  # one element has any stride
    return flat.view(torch.uint8).numpy().data
