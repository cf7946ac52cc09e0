"""Weighted k-means for codebooks of up to 2^16 codewords.

Vectors x of dimension d come with weights w, one for each vector or one for each element; the
error is the sum of w (x - c)^2. With w = s^2, the squared scales, it is an error in weight space.

1. k-means++ (Arthur and Vassilvitskii) on a small sample;
2. Lloyd's iterations on samples, each four times the last, then on all vectors: the first ones
   are cheap and go far, the last ones only refine. A step goes beyond the mean of its vectors as
   long as that lowers the error (over-relaxation halves the number of steps). A codeword that
   lost all its vectors moves to the vector with the largest error.

Assignment is one matrix product and an argmin: features [w x, w] times a table [-c, c^2 / 2] are
half the errors, up to a term without c. Blocks of scores stay in cache. In one dimension the
codewords are kept in order and assignment is a search between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reallm_compiler.codecs.scalar import nearest_levels

SCORES = 1 << 17
"""Scores of a block of assignment, in elements: half a megabyte of float32."""

DEVICE_SCORES = 1 << 26
"""The same on an accelerator."""

WORD_BLOCK = 1 << 11
"""Codewords of a block of scores, for codebooks of more."""

SEED_SAMPLE = 16
"""Vectors of the sample of k-means++ for each codeword."""

FIRST_SAMPLE = 64
"""Vectors of the first sample of Lloyd's iterations for each codeword."""

GROWTH = 4
"""Size of a sample in terms of the one before."""

LEAST_SEED_SAMPLE = 1 << 12
LEAST_SAMPLE = 1 << 14
LARGEST_SAMPLE = 1 << 18
"""Bounds on samples, in vectors; a large codebook is always seeded by `SEED_SAMPLE` a word."""

RESTARTS = 3
RESTART_CODEWORDS = 64
"""Runs on the first sample for codebooks of at most that many words; one run for larger ones."""

BEYOND = 1.8
"""Length of a step, in distances to the mean."""

SETTLED_SAMPLE = 1e-4
SETTLED = 3e-4
"""Relative gains of a step below which Lloyd's iterations end, on samples and on all vectors."""

SEEDING_ROUNDS = 256
"""k-means++ draws K / 256 codewords at a time, one at a time for K up to 256."""


class Vectors(Protocol):
    """Weighted vectors that are made a chunk at a time."""

    @property
    def count(self) -> int:
        """Number of vectors n."""
        ...

    @property
    def dim(self) -> int:
        """Their dimension d."""
        ...

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """All vectors in order: place of the first, vectors [n, d], weights [n] or [n, d].

        Weights are None where all are 1.
        """
        ...

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The vectors [n, d] at the places `index` [n], and their weights as in `chunks`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseVectors:
    """Vectors that are held in memory: `values` [n, d], `weights` [n], [n, d] or None."""

    values: Tensor
    weights: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of vectors."""
        return self.values.shape[0]

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.values.shape[1]

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Chunks of 2^16 vectors."""
        for first in range(0, self.count, 1 << 16):
            span = slice(first, first + (1 << 16))
            yield first, self.values[span], None if self.weights is None else self.weights[span]

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors and weights at `index`."""
        return self.values[index], None if self.weights is None else self.weights[index]


def fit(vectors: Vectors, words: int, iterations: int, generator: torch.Generator) -> Tensor:
    """A codebook [words, d] for `vectors`.

    With fewer distinct vectors than words, the words left over are zero.

    Args:
        vectors: the vectors, at least one.
        words: K, 2 to 65536.
        iterations: the most Lloyd iterations, on each sample and on all vectors.
        generator: on the CPU.
    """
    least = max(LEAST_SEED_SAMPLE, SEED_SAMPLE * words)
    most = max(LARGEST_SAMPLE, least)
    small = sampled(vectors, least, generator)
    size = min(max(LEAST_SAMPLE, FIRST_SAMPLE * words), most)
    sample = sampled(vectors, size, generator)
    runs = []
    for _ in range(RESTARTS if words <= RESTART_CODEWORDS else 1):
        start = seed_codebook(small, words, generator)
        runs.append(lloyd(sample, start, iterations, SETTLED_SAMPLE))
    codebook, _ = min(runs, key=lambda run: run[1])
    while size < min(most, vectors.count):
        size = min(GROWTH * size, most)
        sample = sampled(vectors, size, generator)
        codebook, _ = lloyd(sample, codebook, iterations, SETTLED_SAMPLE)
    if size < vectors.count:
        codebook, _ = lloyd(vectors, codebook, iterations, SETTLED)
    return codebook


def sampled(vectors: Vectors, size: int, generator: torch.Generator) -> DenseVectors:
    """All vectors if there are at most `size`, else `size` random ones, perhaps some twice."""
    if vectors.count <= size:
        index = torch.arange(vectors.count)
    else:
        index = torch.randint(vectors.count, (size,), generator=generator)
    values, weights = vectors.pick(index)
    return DenseVectors(values=values, weights=weights)


def seed_codebook(sample: DenseVectors, words: int, generator: torch.Generator) -> Tensor:
    """k-means++: words drawn one after the other with chances proportional to their error.

    Codebooks of more than 256 words draw several at a time, which changes little: a draw is
    then blind to the few drawn with it.
    """
    values, weights = sample.values, sample.weights
    codebook = values.new_zeros(words, sample.dim)
    first = torch.ones(sample.count, dtype=torch.float64) if weights is None else _mass(weights)
    chosen = _draw(first, 1, generator)
    if not len(chosen):
        return codebook
    codebook[:1] = values[chosen.to(values.device)]
    error = _errors(values, weights, codebook[:1])
    done = 1
    while done < words:
        count = min(words - done, max(1, words // SEEDING_ROUNDS))
        chosen = _draw(error, count, generator)
        if not len(chosen):
            break  # every vector is a codeword already
        fresh = values[chosen.to(values.device)]
        codebook[done : done + len(fresh)] = fresh
        error = torch.minimum(error, _errors(values, weights, _ordered(fresh)))
        done += len(fresh)
    return _ordered(codebook)


def lloyd(
    vectors: Vectors, codebook: Tensor, iterations: int, settled: float
) -> tuple[Tensor, float]:
    """Lloyd's iterations from `codebook` [K, d] until a step gains less than `settled`.

    Returns:
        the codebook of the least error that was met, moved to its means, and that error before
        the move (which cannot raise it), a sum over the vectors.
    """
    best, best_error = codebook, float("inf")
    step = 1.0
    for _ in range(iterations):
        error, sums, masses = _statistics(vectors, codebook)
        gain = 1.0 if best_error == float("inf") else 1 - error / max(best_error, 1e-300)
        mean = (sums / masses.clamp(min=torch.finfo(torch.float64).tiny)).to(codebook.dtype)
        mean = torch.where(masses > 0, mean, codebook)
        if gain > 0:
            best, best_error = mean, error
        if error == 0 or (gain < settled and step == 1.0):
            break
        # A long step that gained too little is followed by a plain one, which has the last word.
        step = BEYOND if gain >= settled else 1.0
        moved = torch.lerp(codebook, mean, step) if gain > 0 else best
        empty = (masses.sum(1) == 0).nonzero()[:, 0]
        if len(empty):
            moved = _reseeded(vectors, codebook, moved, empty)
        codebook = _ordered(moved)
    return _ordered(best), best_error


def _ordered(codebook: Tensor) -> Tensor:
    """One-dimensional codewords in ascending order; others as they are."""
    return codebook.sort(dim=0).values if codebook.shape[1] == 1 else codebook


def assign(values: Tensor, weights: Tensor | None, codebook: Tensor) -> Tensor:
    """The nearest codeword of each vector; the lowest index among equals.

    Args:
        values: [n, d].
        weights: [n, d] for weights of elements; None or [n] where they cannot matter.
        codebook: [K, d]; ascending for d = 1.

    Returns:
        int64 [n].
    """
    if codebook.shape[1] == 1:
        return nearest_levels(values.reshape(-1), codebook[:, 0])
    per_element = weights is not None and weights.dim() == 2
    table = score_table(codebook, per_element=per_element)
    features = _features(values, weights)
    n, words = len(features), len(codebook)
    width = min(words, WORD_BLOCK)
    on_cpu = values.device.type == "cpu"
    height = max(1, (SCORES if on_cpu else DEVICE_SCORES) // width)
    result = torch.empty(n, dtype=torch.int64, device=values.device)
    buffer = torch.empty(min(height, n), width, dtype=values.dtype, device=values.device)
    for first in range(0, n, height):
        part, target = features[first : first + height], result[first : first + height]
        least: Tensor | None = None
        for word in range(0, words, width):
            scores = buffer[: len(part), : min(width, words - word)]
            torch.mm(part, table[:, word : word + width], out=scores)
            # numpy finds a least place several times faster than torch does.
            if on_cpu and width == words:
                scores.numpy().argmin(1, out=target.numpy())
                continue
            index = torch.from_numpy(scores.numpy().argmin(1)) if on_cpu else scores.argmin(1)
            if width == words:
                target.copy_(index)
                continue
            found = scores.gather(1, index[:, None])[:, 0]
            if least is None:
                least = found
                target.copy_(index)
                continue
            nearer = found < least
            least = torch.where(nearer, found, least)
            target.copy_(torch.where(nearer, index + word, target))
    return result


def score_table(codebook: Tensor, *, per_element: bool) -> Tensor:
    """The right-hand side of assignment: [2 d, K] for weights of elements, else [d + 1, K]."""
    half_squares = codebook.square() / 2
    if not per_element:
        half_squares = half_squares.sum(1, keepdim=True)
    return torch.cat([-codebook, half_squares], dim=1).t().contiguous()


def _features(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None or weights.dim() == 1:
        return torch.cat([values, values.new_ones(len(values), 1)], dim=1)
    return torch.cat([values * weights, weights], dim=1)


def _statistics(vectors: Vectors, codebook: Tensor) -> tuple[float, Tensor, Tensor]:
    """One pass: the error of `codebook`, and what the next one needs.

    Returns:
        the weighted error; sums of w x [K, d] and of w [K, d], float64, by nearest codeword.
    """
    words, dim = codebook.shape
    sums = torch.zeros(words, dim, dtype=torch.float64, device=codebook.device)
    masses = torch.zeros_like(sums)
    squares = 0.0
    for _, values, weights in vectors.chunks():
        nearest = assign(values, weights, codebook)
        wide = weights[:, None] if weights is not None and weights.dim() == 1 else weights
        weighted = values if wide is None else values * wide
        squares += float((weighted * values).sum(dtype=torch.float64))
        mass = values.new_ones(len(values), 1) if wide is None else wide
        sums += sums_by_word(weighted, nearest, words)
        masses += sums_by_word(mass, nearest, words)
    # sum w (x - c)^2 = sum w x^2 - 2 c sum w x + c^2 sum w, over the vectors of each codeword.
    c = codebook.to(torch.float64)
    error = squares + float((c * (c * masses - 2 * sums)).sum())
    return max(error, 0.0), sums, masses


def sums_by_word(values: Tensor, nearest: Tensor, words: int) -> Tensor:
    """Sums of `values` [n, m] by codeword, float64 [K, m], in a fixed order of addition."""
    if values.device.type == "cpu":
        parts = [
            torch.bincount(nearest, weights=column, minlength=words)
            for column in values.to(torch.float64).unbind(1)
        ]
        return torch.stack(parts, dim=1)
    return _sums_of_runs(values, nearest, words)


def _sums_of_runs(values: Tensor, nearest: Tensor, words: int) -> Tensor:
    """`sums_by_word` on an accelerator, where sums in no fixed order would change the bytes."""
    index = nearest.sort(stable=True)
    lengths = torch.bincount(nearest, minlength=words)
    ordered = values[index.indices].to(torch.float64)
    sums: Tensor = torch.segment_reduce(ordered, "sum", lengths=lengths, axis=0, unsafe=True)
    return sums


def _reseeded(vectors: Vectors, codebook: Tensor, moved: Tensor, empty: Tensor) -> Tensor:
    """`moved` with its empty words put on the vectors that `codebook` serves worst."""
    worst = torch.empty(0, dtype=torch.float64)
    places = torch.empty(0, dtype=torch.int64)
    for first, values, weights in vectors.chunks():
        error = _errors(values, weights, codebook).cpu()
        error = torch.cat([worst, error])
        place = torch.cat([places, torch.arange(first, first + len(values))])
        keep = error.sort(descending=True, stable=True).indices[: len(empty)]
        worst, places = error[keep], place[keep]
    places = places[worst > 0]
    if len(places):
        values, _ = vectors.pick(places)
        moved = moved.clone()
        moved[empty[: len(places)]] = values
    return moved


def _errors(values: Tensor, weights: Tensor | None, codebook: Tensor) -> Tensor:
    """float64 [n]: the weighted squared distance of each vector to its nearest codeword."""
    if len(codebook) == 1:
        difference = values - codebook
    else:
        difference = values - codebook[assign(values, weights, codebook)]
    squares = difference.square_()
    if weights is not None:
        squares *= weights if weights.dim() == 2 else weights[:, None]
    return squares.sum(1, dtype=torch.float64)


def _mass(weights: Tensor) -> Tensor:
    return (weights if weights.dim() == 1 else weights.sum(1)).to(torch.float64)


def _draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` different places, drawn in proportion to `chances` [n]; none if all are 0.

    On the CPU whatever the device: a running sum has a fixed order of addition there.
    """
    running = chances.cpu().cumsum(0)
    total = float(running[-1]) if len(running) else 0.0
    if not total > 0:
        return torch.empty(0, dtype=torch.int64)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * total
    places = torch.searchsorted(running, points, right=True).clamp_(max=len(running) - 1)
    if count == 1:
        return places
    places = places.sort().values
    return places[torch.cat([places.new_ones(1) > 0, places[1:] > places[:-1]])]
