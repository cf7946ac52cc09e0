"""Weighted k-means for codebooks of up to 2^16 codewords.

Vectors x of dimension d come with weights w, one for each vector or one for each element; the
error is the sum of w (x - c)^2. With w = s^2, the squared scales, it is an error in weight space.

1. k-means++ (Arthur and Vassilvitskii) on a small sample, each codeword the best of a few drawn;
2. Lloyd's iterations on samples, each four times the last, then on all vectors: the first ones
   are cheap and go far, the last ones only refine. A step goes beyond the mean of its vectors and
   on in the direction of the step before it, as long as that lowers the error: this saves half of
   the steps, and runs past shallow minima. A codeword that lost all its vectors moves to the
   vector with the largest error.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics.assignment import assign, errors, sums_by_codeword
from reallm_compiler.codecs.numerics.seeding import ordered, seed_codebook
from reallm_compiler.codecs.numerics.vectors import Vectors, sampled

SEED_SAMPLE = 16
"""Vectors of the sample of k-means++ for each codeword."""

FIRST_SAMPLE = 64
"""Vectors of the first sample of Lloyd's iterations for each codeword."""

GROWTH = 4
"""Size of a sample in terms of the one before."""

LEAST_SAVING = 8
"""Vectors for each one of a sample: to learn from a larger share first saves nothing."""

LEAST_SEED_SAMPLE = 1 << 12
LEAST_SAMPLE = 1 << 14
LARGEST_SAMPLE = 1 << 18
"""Bounds on samples, in vectors; a large codebook is always seeded by `SEED_SAMPLE` a codeword."""

RESTARTS = 3
RESTART_CODEWORDS = 32
"""Runs for codebooks of at most that many codewords, of which the best goes on; one run for larger
codebooks, whose minima are all alike."""

BEYOND = 1.5
"""Length of a step, in distances to the mean."""

MOMENTUM = 0.8
"""Share of the last step that is added to a step."""

SETTLED = 1e-4
SETTLED_LARGE = 3e-4
"""Relative gains of a step below which Lloyd's iterations end; `SETTLED_LARGE` on more vectors than
any sample has, where a step is dear and has little left to gain."""


def fit(vectors: Vectors, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """A codebook [codewords, d] for `vectors`.

    With fewer distinct vectors than codewords, the codewords left over are zero.

    Args:
        vectors: the vectors, at least one.
        count: codewords K, 2 to 65536.
        iterations: the most Lloyd iterations, on each sample and on all vectors.
        generator: on the CPU.
    """
    small = sampled(vectors, max(LEAST_SEED_SAMPLE, SEED_SAMPLE * count), generator)
    runs = RESTARTS if count <= RESTART_CODEWORDS else 1
    starts: Iterable[Tensor] = (seed_codebook(small, count, generator) for _ in range(runs))
    most = max(LARGEST_SAMPLE, SEED_SAMPLE * count)
    size = min(max(LEAST_SAMPLE, FIRST_SAMPLE * count), most)
    while size <= most and LEAST_SAVING * size <= vectors.count:
        starts = [_best_run(sampled(vectors, size, generator), starts, iterations, SETTLED)]
        size *= GROWTH
    settled = SETTLED if vectors.count <= most else SETTLED_LARGE
    return _best_run(vectors, starts, iterations, settled)


def _best_run(
    vectors: Vectors, starts: Iterable[Tensor], iterations: int, settled: float
) -> Tensor:
    runs = (lloyd(vectors, start, iterations, settled) for start in starts)
    return min(runs, key=lambda run: run[1])[0]


def lloyd(
    vectors: Vectors, codebook: Tensor, iterations: int, settled: float
) -> tuple[Tensor, float]:
    """Lloyd's iterations from `codebook` [K, d] until a step gains less than `settled`.

    Returns:
        the codebook of the least error that was met, moved to its means, and that error before
        the move (which cannot raise it), a sum over the vectors.
    """
    best, best_error = codebook, float("inf")
    last: Tensor | None = None  # where the last step came to, before its momentum
    plain = False  # the codebook is the means of the best one
    for _ in range(iterations):
        error, sums, weight_sums = _statistics(vectors, codebook)
        gain = 1.0 if best_error == float("inf") else 1 - error / max(best_error, 1e-300)
        mean = (sums / weight_sums.clamp(min=torch.finfo(torch.float64).tiny)).to(codebook.dtype)
        mean = torch.where(weight_sums > 0, mean, codebook)
        if gain > 0:
            best, best_error = mean, error
        if error == 0 or (gain < settled and plain):
            break
        plain = gain < settled
        if plain:
            # A step that gained too little is followed by a plain one, which has the last word.
            codebook, last = best, None
            continue
        reached = torch.lerp(codebook, mean, BEYOND)
        empty = (weight_sums.sum(1) == 0).nonzero()[:, 0]
        if len(empty):
            reached = _reseeded(vectors, codebook, reached, empty)
        codebook = reached if last is None else reached + MOMENTUM * (reached - last)
        if len(empty):
            codebook[empty] = reached[empty]
        codebook, last = ordered(codebook), reached
    return ordered(best), best_error


def _statistics(vectors: Vectors, codebook: Tensor) -> tuple[float, Tensor, Tensor]:
    """One pass: the error of `codebook`, and what the next one needs.

    Returns:
        the weighted error; sums of w x [K, d] and of w [K, d], float64, by nearest codeword.
    """
    count, dim = codebook.shape
    sums = torch.zeros(count, dim, dtype=torch.float64, device=codebook.device)
    weight_sums = torch.zeros_like(sums)
    squares = 0.0
    for _, values, weights in vectors.chunks():
        nearest = assign(values, weights, codebook)
        wide = weights[:, None] if weights is not None and weights.dim() == 1 else weights
        weighted = values if wide is None else values * wide
        squares += float((weighted * values).sum(dtype=torch.float64))
        sums += sums_by_codeword(weighted, nearest, count)
        if wide is None:
            weight_sums += torch.bincount(nearest, minlength=count)[:, None]
        else:
            weight_sums += sums_by_codeword(wide, nearest, count)
    # sum w (x - c)^2 = sum w x^2 - 2 c sum w x + c^2 sum w, over the vectors of each codeword.
    c = codebook.to(torch.float64)
    error = squares + float((c * (c * weight_sums - 2 * sums)).sum())
    return max(error, 0.0), sums, weight_sums


def _reseeded(vectors: Vectors, codebook: Tensor, moved: Tensor, empty: Tensor) -> Tensor:
    """`moved` with its empty codewords put on the vectors that `codebook` serves worst."""
    worst = torch.empty(0, dtype=torch.float64)
    indices = torch.empty(0, dtype=torch.int64)
    for first, values, weights in vectors.chunks():
        error = errors(values, weights, codebook).cpu()
        error = torch.cat([worst, error])
        index = torch.cat([indices, torch.arange(first, first + len(values))])
        keep = error.sort(descending=True, stable=True).indices[: len(empty)]
        worst, indices = error[keep], index[keep]
    indices = indices[worst > 0]
    if len(indices):
        values, _ = vectors.pick(indices)
        moved = moved.clone()
        moved[empty[: len(indices)]] = values
    return moved
