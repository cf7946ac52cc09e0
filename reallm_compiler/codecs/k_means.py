"""Weighted k-means for codebooks of up to 2^16 codewords.

Vectors x_v of dimension d come with weights w, one for each vector or each element: the error is
sum w (x - c)^2 (algorithms of vector quantisation call for weights s^2, the squared scales, so
that it is an error in weight space). Its stages:

1. k-means++ on a sample (Arthur and Vassilvitskii), with restarts where they are cheap;
2. Lloyd's iterations on the sample, then on all vectors; a codeword that lost all its vectors
   moves to the vector with the largest error.

Assignment is one matrix product and an argmin. With features f = [w x, w] and the table
[-c, c^2 / 2] the product is the error up to a term without c; the blocks of scores stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SCORES = 1 << 17
"""Scores of a block of assignment, in elements: half a megabyte of float32."""

SAMPLE_PER_CODEWORD = 256
SAMPLE_RANGE = (1 << 14, 1 << 20)
"""Vectors of the sample for each codeword, and the least and most of them in all."""

RESTARTS = 3
RESTART_CODEWORDS = 64
"""Runs on the sample for codebooks of at most that many words; one run for larger ones."""

SETTLED = 1e-4
"""Relative gain of an iteration below which Lloyd's iterations end."""

SEEDING_ROUNDS = 256
"""k-means++ draws K / 256 codewords at a time, one at a time for K up to 256."""


class Vectors(Protocol):
    """Weighted vectors that are made a chunk at a time.

    Attributes:
        count: number of vectors n.
        dim: their dimension d.
    """

    count: int
    dim: int

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


def fit(
    vectors: Vectors, words: int, iterations: int, generator: torch.Generator
) -> Tensor:
    """A codebook [words, d] for `vectors`.

    With fewer distinct vectors than words, the words left over are zero.

    Args:
        vectors: the vectors.
        words: K, 2 to 65536.
        iterations: the most Lloyd iterations, on the sample and again on all vectors.
        generator: on the CPU.
    """
    low, high = SAMPLE_RANGE
    size = min(max(low, SAMPLE_PER_CODEWORD * words), high)
    whole = vectors.count <= size
    sample = sampled(vectors, size, generator)
    best, best_error = None, float("inf")
    for _ in range(RESTARTS if words <= RESTART_CODEWORDS else 1):
        start = seed_codebook(sample, words, generator)
        codebook, error = lloyd(sample, start, iterations)
        if best is None or error < best_error:
            best, best_error = codebook, error
    assert best is not None
    return best if whole else lloyd(vectors, best, iterations)[0]


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
        error = torch.minimum(error, _errors(values, weights, fresh))
        done += len(fresh)
    return codebook


def lloyd(vectors: Vectors, codebook: Tensor, iterations: int) -> tuple[Tensor, float]:
    """Lloyd's iterations from `codebook` [K, d] until they settle.

    Returns:
        the codebook with the least error seen, and that error, a sum over the vectors.
    """
    best, best_error = codebook, float("inf")
    for _ in range(iterations):
        error, sums, masses = _statistics(vectors, codebook)
        settled = error >= best_error * (1 - SETTLED)
        if error < best_error:
            best, best_error = codebook, error
        if settled:
            break
        means = (sums / masses.clamp(min=torch.finfo(torch.float64).tiny)).to(codebook.dtype)
        moved = torch.where(masses > 0, means, codebook)
        empty = (masses.sum(1) == 0).nonzero()[:, 0]
        if len(empty):
            moved = _reseeded(vectors, codebook, moved, empty)
        codebook = moved
    else:
        error, _, _ = _statistics(vectors, codebook)
        if error < best_error:
            best, best_error = codebook, error
    return best, best_error


def assign(values: Tensor, weights: Tensor | None, table: Tensor) -> Tensor:
    """The nearest codeword of each vector; the lowest index among equals.

    Args:
        values: [n, d].
        weights: [n, d] for weights of elements; None or [n] where they cannot matter.
        table: `score_table` of the codebook for such weights.

    Returns:
        int64 [n].
    """
    features = _features(values, weights)
    n, words = len(features), table.shape[1]
    # Blocks of words for large codebooks, blocks of vectors always.
    width = min(words, 1 << 11)
    height = max(1, SCORES // width) if values.device.type == "cpu" else 1 << 14
    result = torch.empty(n, dtype=torch.int64, device=values.device)
    if values.device.type == "cpu":
        out = result.numpy()
        buffer = torch.empty(min(height, n), width, dtype=values.dtype)
        for first in range(0, n, height):
            part = features[first : first + height]
            scores = buffer[: len(part)]
            if width == words:
                torch.mm(part, table, out=scores)
                scores.numpy().argmin(axis=1, out=out[first : first + len(part)])
                continue
            least = torch.full((len(part),), torch.inf, dtype=values.dtype)
            for word in range(0, words, width):
                torch.mm(part, table[:, word : word + width], out=scores)
                index = torch.from_numpy(scores.numpy().argmin(axis=1))
                found = scores.gather(1, index[:, None])[:, 0]
                nearer = found < least
                least = torch.where(nearer, found, least)
                target = result[first : first + len(part)]
                target.copy_(torch.where(nearer, index + word, target))
        return result
    for first in range(0, n, height):
        part = features[first : first + height]
        result[first : first + height] = (part @ table).argmin(dim=1)
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
    table: Tensor | None = None
    for _, values, weights in vectors.chunks():
        per_element = weights is not None and weights.dim() == 2
        if table is None:
            table = score_table(codebook, per_element=per_element)
        nearest = assign(values, weights, table)
        wide = weights if weights is None or per_element else weights[:, None]
        weighted = values if wide is None else values * wide
        squares += float((weighted * values).sum(dtype=torch.float64))
        mass = values.new_ones(len(values), 1) if wide is None else wide
        sums += _by_word(weighted, nearest, words)
        masses += _by_word(mass, nearest, words)
    # sum w (x - c)^2 = sum w x^2 - 2 c sum w x + c^2 sum w, over the vectors of each codeword.
    c = codebook.to(torch.float64)
    error = squares + float((c * (c * masses - 2 * sums)).sum())
    return max(error, 0.0), sums, masses


def _by_word(values: Tensor, nearest: Tensor, words: int) -> Tensor:
    """Sums of `values` [n, m] by codeword, float64 [K, m], in a fixed order of addition."""
    if values.device.type == "cpu":
        parts = [
            torch.bincount(nearest, weights=column, minlength=words)
            for column in values.to(torch.float64).unbind(1)
        ]
        return torch.stack(parts, dim=1)
    # On an accelerator additions in no fixed order would change the bytes: sort, then add runs.
    index = nearest.sort(stable=True)
    lengths = torch.bincount(nearest, minlength=words)
    ordered = values[index.indices].to(torch.float64)
    return torch.segment_reduce(ordered, "sum", lengths=lengths, axis=0, unsafe=True)


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
    per_element = weights is not None and weights.dim() == 2
    if len(codebook) == 1:
        difference = values - codebook
    else:
        table = score_table(codebook, per_element=per_element)
        difference = values - codebook[assign(values, weights, table)]
    squares = difference.square()
    if weights is not None:
        squares = squares * (weights if per_element else weights[:, None])
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
    return places.unique() if count > 1 else places
