"""The battery that every codec passes, and generators of test matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reallm_compiler.codecs import (
    Encoded,
    check_sections,
    decode_matrix,
    encode_matrix,
    from_bytes,
    to_bytes,
)
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of

RAGGED = [(1, 1), (1, 7), (5, 4), (33, 100), (172, 64)]


@pytest.fixture
def gaussian() -> Callable[..., Tensor]:
    """gaussian(p, q, seed=0): a matrix of standard normal weights."""

    def make(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def plan_of() -> Callable[..., MatrixPlan]:
    """plan_of(residual={...}, ...): a matrix plan from plain words."""
    return lambda **fields: MatrixPlan.model_validate(fields)


@pytest.fixture
def check_codec(gaussian) -> Callable[..., Encoded]:
    """check_codec(plan, weight): sections as the size law says, bytes and back, error as stored.

    Returns what was encoded, for further checks.
    """

    def check(plan: MatrixPlan, weight: Tensor, source_dtype: str = "f32") -> Encoded:
        shape = (weight.shape[0], weight.shape[1])
        specs = layout_of(plan, shape, source_dtype).sections
        before = weight.clone()
        encoded = encode_matrix(plan, weight, seed=5, source_dtype=source_dtype)
        again = encode_matrix(plan, weight, seed=5, source_dtype=source_dtype)
        assert torch.equal(weight, before), "the weight was changed"
        check_sections(encoded.sections, specs)
        assert list(encoded.sections) == [spec.role for spec in specs]

        stored = {spec.role: bytes(to_bytes(encoded.sections[spec.role], spec)) for spec in specs}
        assert {spec.role: len(stored[spec.role]) for spec in specs} == {
            spec.role: spec.nbytes for spec in specs
        }
        assert stored == {
            spec.role: bytes(to_bytes(again.sections[spec.role], spec)) for spec in specs
        }, "a second run gave other bytes"
        assert encoded.relative_error == again.relative_error

        read = {spec.role: from_bytes(stored[spec.role], spec) for spec in specs}
        decoded = decode_matrix(plan, shape, source_dtype, read, dtype=torch.float64)
        assert decoded.shape == shape
        assert torch.isfinite(decoded).all()
        wrong = torch.linalg.norm(decoded - weight.to(torch.float64))
        right = torch.linalg.norm(weight.to(torch.float64))
        expected = float(wrong / right) if right else 0.0
        assert encoded.relative_error == pytest.approx(expected, rel=1e-12, abs=1e-15)
        return encoded

    return check
