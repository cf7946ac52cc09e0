"""The singular values of a matrix, and what white noise of its shape would have.

The low-rank residual of a recipe pays where the leading singular values hold clearly more than
those of noise, and more than the bits of its factors: both are measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from reallm_compiler.evaluate.statistics import gram

FRACTIONS = tuple(Fraction(1, 2**power) for power in range(6, 0, -1))
"""Ranks, as fractions of min(p, q), at which the low-rank share is measured: 1/64 to 1/2."""

LOW_RANK_BITS = 16
"""Bits of a number of the factors in `Spectrum.net_bits`."""

_STEPS = 4096
"""Steps of the integral over the spectrum of noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRankShare:
    """What the leading singular values hold.

    Attributes:
        fraction: the rank as a fraction of min(p, q).
        rank: the rank r, at least 1.
        share: share of the squared norm in the r largest singular values.
        noise_share: the same for a large white matrix of this aspect ratio.
        cost_bits: bits per weight of the factors, 16 r (p + q) / pq.
        net_bits: bits per weight that taking them off saves in the coded part at equal error,
            1/2 log2(1 / (1 - share)), less `cost_bits`; infinite where nothing is left.
    """

    fraction: Fraction
    rank: int
    share: float
    noise_share: float
    cost_bits: float
    net_bits: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectrum:
    """Singular values of a matrix.

    Attributes:
        values: singular values, the largest first.
        effective_rank: exp of the entropy of the singular values, scaled to sum 1 (Roy and
            Vetterli 2007); between 1 and min(p, q).
        stable_rank: squared norm / square of the largest singular value.
        low_rank: shares at `FRACTIONS`.
    """

    values: tuple[float, ...]
    effective_rank: float
    stable_rank: float
    low_rank: tuple[LowRankShare, ...]


def spectrum(weight: Tensor) -> Spectrum:
    """Singular values of [p, q], from the eigenvalues of the smaller Gram matrix.

    Values below about 1e-7 of the largest are not resolved: no share or rank here needs them.
    """
    p, q = weight.shape
    squares = torch.linalg.eigvalsh(gram(weight, 0.0)).clamp_min(0).flip(0)  # [min(p, q)]
    total = float(squares.sum())
    values = squares.sqrt()
    if total == 0:
        return Spectrum(
            values=tuple(values.tolist()), effective_rank=0.0, stable_rank=0.0, low_rank=()
        )
    parts = values / values.sum()
    entropy = -float(torch.where(parts > 0, parts * parts.log(), 0.0).sum())
    sums = squares.cumsum(0) / total
    shares = []
    for fraction in FRACTIONS:
        rank = max(1, math.floor(fraction * min(p, q)))
        share = min(1.0, float(sums[rank - 1]))
        cost = LOW_RANK_BITS * rank * (p + q) / (p * q)
        saved = 0.5 * math.log2(1 / (1 - share)) if share < 1 else math.inf
        shares.append(
            LowRankShare(
                fraction=fraction,
                rank=rank,
                share=share,
                noise_share=noise_share(p, q, rank),
                cost_bits=cost,
                net_bits=saved - cost,
            )
        )
    return Spectrum(
        values=tuple(values.tolist()),
        effective_rank=math.exp(entropy),
        stable_rank=total / float(squares[0]),
        low_rank=tuple(shares),
    )


def noise_share(p: int, q: int, rank: int) -> float:
    """Share of the squared norm in the leading singular values of large white noise.

    By the Marchenko-Pastur law. With c = min / max of (p, q) and squared singular values
    1 + c + 2 sqrt(c) cos(t), t from 0 to pi, the share has density 2 sin(t)^2 / pi and the
    number of values 2 sin(t)^2 / pi / (squared singular value).
    """
    low, high = sorted((p, q))
    ratio = low / high
    step = math.pi / _STEPS
    counted = held = 0.0
    wanted = rank / low
    for number in range(_STEPS):
        angle = (number + 0.5) * step
        held_here = 2 * math.sin(angle) ** 2 / math.pi * step
        here = held_here / (1 + ratio + 2 * math.sqrt(ratio) * math.cos(angle))
        if counted + here >= wanted:
            return min(1.0, held + held_here * (wanted - counted) / here)
        counted += here
        held += held_here
    return 1.0
