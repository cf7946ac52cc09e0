"""Random rotations of any extent: orthogonal, mixing, applied to rows and columns alike."""

from __future__ import annotations

import math

import pytest
import torch

from reallm_compiler.codecs.numerics.rotation import rotate_columns, rotate_rows
from reallm_compiler.tensors import RotationSpec


def matrix_of(rotation: RotationSpec) -> torch.Tensor:
    """Q itself."""
    return rotate_columns(torch.eye(rotation.block, dtype=torch.float64), rotation)


@pytest.mark.parametrize("extent", [1, 2, 7, 48, 64, 128, 160, 192, 896])
def test_it_is_orthogonal_and_mixes_all(extent: int) -> None:
    rotation = matrix_of(RotationSpec(block=extent, seed=2**63 + 5))
    assert torch.allclose(
        rotation @ rotation.T, torch.eye(extent, dtype=torch.float64), rtol=0, atol=1e-14
    )
    assert rotation.abs().max() <= math.sqrt(2 / extent) + 1e-12  # no number stands out
    if extent % 9:  # an odd factor without the zeros of a cosine
        assert rotation.abs().min() > 0


def test_rows_columns_and_blocks() -> None:
    values = torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
    rotation = RotationSpec(block=6, seed=1)
    blocks = torch.block_diag(*[matrix_of(rotation)] * 2)
    assert torch.allclose(rotate_columns(values, rotation), values.double() @ blocks)
    blocks = torch.block_diag(*[matrix_of(rotation)] * 4)
    assert torch.allclose(rotate_rows(values, rotation), blocks.T @ values.double())
    assert not torch.equal(matrix_of(rotation), matrix_of(RotationSpec(block=6, seed=2)))
