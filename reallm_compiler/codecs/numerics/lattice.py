"""Points of the lattice E8 as codewords, made by rule, and the nearest of them.

E8P (QuIP#): a point is s o a + t, with

    a  one of 256 patterns of halves of odd integers above zero: the 227 with |a|^2 <= 10, and the
       first 29 with |a|^2 = 12 and no entry above 3/2, in lexicographic order;
    s  signs; as many are negative as make the sum of s o a even, so the eighth is known;
    t  1/4 or -1/4 in all entries.

A code has 16 bits: from the least, 8 for a, 7 for s (1 is negative), 1 for t (1 is 1/4). Source:
Tseng et al. 2024 (QuIP#), section 4.2. Theirs is another choice of 29 patterns.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.assignment import assign

DIM = 8
"""Dimension of the points."""

PATTERNS = 256
INNER = 10
"""|a|^2 up to which all patterns are taken."""

SHIFT = 0.25
SIGNS = DIM - 1
"""Signs that are stored."""


@cache
def patterns() -> Tensor:
    """float64 [256, 8]: the patterns a."""
    inner = [a for a in itertools.product((0.5, 1.5, 2.5), repeat=DIM) if _square(a) <= INNER]
    outer = [a for a in itertools.product((0.5, 1.5), repeat=DIM) if _square(a) == INNER + 2]
    return torch.tensor([*inner, *outer[: PATTERNS - len(inner)]], dtype=torch.float64)


def _square(a: tuple[float, ...]) -> float:
    return sum(one * one for one in a)


def _odd(a: Tensor) -> Tensor:
    """Whether the sum of each pattern is odd, and with it the number of its negative signs."""
    return a.sum(1).to(torch.int64) % 2


@cache
def e8p_points() -> Tensor:
    """float64 [65536, 8]: the point of each code."""
    code = torch.arange(1 << (8 + DIM))
    a = patterns()[code % PATTERNS]
    negative = code[:, None] >> (8 + torch.arange(SIGNS)) & 1  # [codes, 7]
    last = (negative.sum(1, keepdim=True) + _odd(a)[:, None]) % 2
    signs = 1.0 - 2.0 * torch.cat([negative, last], dim=1)
    shift = torch.where(code >> (8 + SIGNS) == 1, SHIFT, -SHIFT)
    return signs * a + shift[:, None]


@cache
def e8_words() -> Tensor:
    """float64 [256, 8]: 0, the 240 shortest points of E8, and 15 of the 16 points +-2 e_i."""
    words = [[0.0] * DIM]
    for i, j in itertools.combinations(range(DIM), 2):
        for si, sj in itertools.product((1.0, -1.0), repeat=2):
            words.append([si if k == i else sj if k == j else 0.0 for k in range(DIM)])
    halves = itertools.product((0.5, -0.5), repeat=DIM)
    words += [list(one) for one in halves if sum(one) % 2 == 0]
    twice = [[s if k == i else 0.0 for k in range(DIM)] for i in range(DIM) for s in (2.0, -2.0)]
    return torch.tensor([*words, *twice[: PATTERNS - len(words)]], dtype=torch.float64)


@cache
def _variants(odd: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Patterns that magnitudes with an even or odd number of negative signs can become.

    A pattern that wants the other number has one sign turned, each in turn.

    Returns:
        [m, 8], and the index of each one's pattern int64 [m].
    """
    a = patterns()
    same = _odd(a) == odd
    turned = a[~same][:, None] * (1.0 - 2.0 * torch.eye(DIM, dtype=a.dtype))  # [., 8, 8]
    index = torch.arange(PATTERNS)
    return (
        torch.cat([a[same], turned.flatten(0, 1)]).to(device, dtype),
        torch.cat([index[same], index[~same].repeat_interleave(DIM)]).to(device),
    )


def nearest_e8p(values: Tensor, weights: Tensor | None) -> Tensor:
    """int64 [n]: codes of the nearest points.

    Of a pattern the signs of the values are the best ones; where their number is wrong, one is
    turned. So 2 x 1,152 signed patterns are tried instead of 65,536 points.

    Args:
        values: [n, 8].
        weights: [n, 8], what the square of an error in each entry costs; None or [n] where they
            are equal within each vector.
    """
    best = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    least = torch.full((len(values),), torch.inf, dtype=values.dtype, device=values.device)
    if weights is not None and weights.dim() == 1:
        weights = None
    for shift in (-SHIFT, SHIFT):
        moved = values - shift
        negative = moved < 0
        size = moved.abs()
        count = negative.sum(1) % 2
        for odd in (0, 1):
            index = (count == odd).nonzero()[:, 0]
            if not len(index):
                continue
            variants, pattern = _variants(odd, values.dtype, values.device)
            part, own = size[index], None if weights is None else weights[index]
            found = assign(part, own, variants)
            chosen = variants[found]
            squares = (part - chosen).square_()
            error = (squares if own is None else squares.mul_(own)).sum(1)
            signs = negative[index] ^ (chosen < 0)
            powers = 1 << torch.arange(SIGNS, device=values.device)
            code = pattern[found] + (signs[:, :SIGNS] * powers).sum(1) * PATTERNS
            code += (1 << (8 + SIGNS)) if shift > 0 else 0
            better = error < least[index]
            best[index] = torch.where(better, code, best[index])
            least[index] = torch.where(better, error, least[index])
    return best
