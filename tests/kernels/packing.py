"""Packed matrices to try products on."""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs import decode_matrix
from reallm_compiler.kernels.packed import PackedForm, PackedMatrix
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage import dora
from reallm_compiler.storage.matrix import layout_of
from tests.codecs.size_law import coded_or_refused


def packed_matrix(
    plan: MatrixPlan, shape: tuple[int, int], seed: int = 0, *, column_gain: bool = False
) -> PackedMatrix | None:
    """A random matrix coded by a plan; None if the plan cannot code it."""
    layout = layout_of(plan, shape, "f32")
    if layout.refusal is not None:
        return None
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    made = coded_or_refused(plan, weight, seed)
    if made is None:
        return None
    shared, coded = made
    sections = {**shared, **coded.sections}
    if column_gain:
        sections["column_gain"] = torch.rand(shape[1], generator=generator).half() + 0.5
    form = PackedForm(layout=layout, column_gain=column_gain)
    return form.with_sections([sections[spec.role] for spec in form.specs])


def dense(packed: PackedMatrix, dtype: torch.dtype = torch.float64) -> Tensor:
    """The decoded matrix [p, q]."""
    return decode_matrix(
        packed.plan,
        packed.shape,
        packed.layout.source_dtype,
        packed.sections,
        dtype=dtype,
        tuned=dora.column_sections(packed.shape) if packed.form.column_gain else (),
        layout=packed.layout,
    )


def distance(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    wanted = wanted.double()
    return float(
        (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    )
