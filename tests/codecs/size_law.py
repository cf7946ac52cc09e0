"""What is held of every plan: its size law, bytes and back, the same again, the true error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reallm_compiler.codecs import (
    check_sections,
    decode_matrix,
    encode_matrix,
    fit_shared,
    from_bytes,
    to_bytes,
)
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import layout_of

REFUSALS = ("too small for", "overflow", "zero everywhere")
"""What a codec says of numbers that a narrow type cannot hold."""


def coded_or_refused(
    plan: MatrixPlan, weight: Tensor, seed: int, times: int = 1
) -> tuple[Any, ...] | None:
    """Sections of its group, and the coded matrix some times; None if a type is too narrow."""
    shape = (weight.shape[0], weight.shape[1])
    try:
        shared = fit_shared([plan] * 2, [weight, weight.t()], seed=2) if plan.share else {}
        made = (
            encode_matrix(
                plan,
                weight,
                seed=seed,
                source_dtype="f32",
                shared=shared,
                statistics=some_statistics(shape, seed),
            )
            for _ in range(times)
        )
        return (shared, *made)
    except CodecError as error:
        # Factors of full rank leave rounding alone, and gains of rows of near zeros have no bound.
        if not any(text in error.message for text in REFUSALS):
            raise
        return None


def check_plan(plan: MatrixPlan, shape: tuple[int, int], seed: int) -> bool:
    """Code a random matrix of a shape by a plan and decode it.

    Returns:
        Whether it was coded: a plan may not fit a shape, or its numbers a type, and says so.
    """
    assert MatrixPlan.model_validate(plan.plain()) == plan
    layout = layout_of(plan, shape, "f32")
    if layout.refusal is not None:
        assert all(len(text) > 5 for text in layout.refusal)
        return False
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    made = coded_or_refused(plan, weight, seed, times=2)
    if made is None:
        return False
    shared, first, second = made
    check_sections({**shared, **first.sections}, layout.sections)
    assert all(torch.isfinite(values.float()).all() for values in first.sections.values())
    for role, values in first.sections.items():
        assert torch.equal(values, second.sections[role]), f"{role} differs in a second run"
    assert [spec.role for spec in layout.sections if not (plan.share and spec.shared)] == list(
        first.sections
    )
    sections = {
        spec.role: stored_and_read({**shared, **first.sections}[spec.role], spec)
        for spec in layout.sections
    }
    decoded = decode_matrix(plan, shape, "f32", sections, dtype=torch.float64)
    assert torch.isfinite(decoded).all()
    wrong = float(torch.linalg.norm(decoded - weight.double()))
    measured = wrong / float(torch.linalg.norm(weight.double()))
    assert first.relative_error == pytest.approx(measured, rel=1e-9, abs=1e-15)
    return True


def some_statistics(shape: tuple[int, int], seed: int) -> MatrixStatistics:
    """Moments of random inputs and gradients, half of which follow the one before."""
    made = torch.Generator().manual_seed(seed)
    inputs, gradients = (torch.randn(4 * extent, extent, generator=made) for extent in shape[::-1])
    for values in (inputs, gradients):
        values[:, 1::2] += values[:, :-1:2][:, : values[:, 1::2].shape[1]]
    grams = [values.T @ values / len(values) for values in (inputs, gradients)]
    return MatrixStatistics(
        inputs=grams[0],
        weighted_inputs=grams[0],
        outputs=grams[1],
        weighted_outputs=grams[1],
        energy=1.0,
        mean_abs=inputs.abs().mean(0),
        count=len(inputs),
    )


def stored_and_read(values: Tensor, spec: SectionSpec) -> Tensor:
    """A section to bytes, as many as planned, and back."""
    data = bytes(to_bytes(values, spec))
    assert len(data) == spec.nbytes
    return from_bytes(data, spec)
