"""Random orthogonal matrices of any extent that are multiplied with in O(n log n).

    Q = S K_1 (x) K_2 (x) ... (x) K_m

S are random signs, the K small orthogonal matrices whose extents multiply to n: Hadamard matrices
for the powers of two in n, and for what is odd in it the cosine transform, since no Hadamard matrix
of an odd extent exists. So every number of x goes into every number of x Q with nearly equal
weight, as of a random Hadamard matrix (QuaRot, section 3), whatever n is.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from reallm_compiler.codecs.transforms.hadamard import hadamard_matrix, signs
from reallm_compiler.tensors import RotationSpec

LARGEST = 64
"""Largest Hadamard factor: two products with 64 cost less than one with 4096."""


def rotate_columns(values: Tensor, rotation: RotationSpec) -> Tensor:
    """values [..., n] times Q, in float64.

    Args:
        values: of any float type.
        rotation: its block divides n; each block of columns is rotated alike.
    """
    block = rotation.block
    turned = values.to(torch.float64).reshape(-1, block)  # [rows x blocks, block]
    turned = turned * signs(block, rotation.seed % 2**64).to(values.device)
    before, after = 1, block
    for factor in _factors(block):
        extent = len(factor)
        after //= extent
        parts = turned.reshape(len(turned) * before, extent, after)
        turned = torch.matmul(factor.T.to(values.device), parts).reshape(-1, block)
        before *= extent
    return turned.reshape(values.shape)


def rotate_rows(values: Tensor, rotation: RotationSpec) -> Tensor:
    """Q^T times values [p, q], in float64."""
    return rotate_columns(values.T, rotation).T


@lru_cache(maxsize=16)
def _factors(extent: int) -> tuple[Tensor, ...]:
    """The orthogonal matrices, float64, whose extents multiply to `extent`. Not to be changed."""
    found, left = [], extent
    while left % 2 == 0:
        size = math.gcd(left, LARGEST)
        found.append(hadamard_matrix(size))
        left //= size
    if left > 1:
        found.append(_cosines(left))
    return tuple(found)


def _cosines(extent: int) -> Tensor:
    """The orthogonal cosine transform (DCT-II), float64 [n, n]."""
    rows = [
        [
            math.sqrt((1 if k == 0 else 2) / extent)
            * math.cos(math.pi * k * (2 * j + 1) / (2 * extent))
            for k in range(extent)
        ]
        for j in range(extent)
    ]
    return torch.tensor(rows, dtype=torch.float64)
