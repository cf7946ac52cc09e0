"""Vectors as sums of codewords, one of each of M codebooks: the search, and the codebooks.

The search goes from codebook to codebook and keeps the best few sums so far (a beam). Codebooks are
learned one after the other by k-means, each on what the ones before leave, and then in turn: each
codeword becomes the mean of what the other codebooks leave of its vectors, and sums are searched
anew.

Source: Egiazarian et al. 2024 (AQLM), section 3; additive codes by Babenko and Lempitsky 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics import k_means
from reallm_compiler.codecs.numerics.assignment import assign, sums_by_codeword
from reallm_compiler.codecs.numerics.vectors import DenseVectors, Vectors, sampled
from reallm_compiler.storage.additive import SAMPLE

SCORES = 1 << 18
"""Scores that are held at once, so that they stay in cache."""

SETTLED = 1e-3
"""Relative gain of a round below which the codebooks stay as they are."""


def nearest_sums(values: Tensor, weights: Tensor | None, books: Tensor, beam: int) -> Tensor:
    """int64 [n, M]: the codewords of a sum that is near to each vector; the nearest for M = 1.

    Args:
        values: [n, d].
        weights: [n, d] for weights of elements; None or [n] where they cannot matter.
        books: [M, K, d].
        beam: sums that are kept from codebook to codebook.
    """
    if len(books) == 1:
        return assign(values, weights, books[0])[:, None]
    if weights is not None and weights.dim() == 1:
        weights = None
    step = max(1, SCORES // (beam * books.shape[1]))
    parts = []
    for first in range(0, len(values), step):
        span = slice(first, first + step)
        own = None if weights is None else weights[span, None]
        parts.append(_search(values[span], own, books, beam))
    return torch.cat(parts) if parts else values.new_zeros(0, len(books), dtype=torch.int64)


def _search(values: Tensor, weights: Tensor | None, books: Tensor, beam: int) -> Tensor:
    rest = values[:, None]  # [n, sums, d]
    codes = torch.zeros(len(values), 1, 0, dtype=torch.int64, device=values.device)
    for number, book in enumerate(books):
        half = book.square() / 2
        if weights is None:
            scores = half.sum(1) - rest @ book.t()  # [n, sums, K]
            left = rest.square().sum(2, keepdim=True) / 2
        else:
            scores = weights @ half.t() - (rest * weights) @ book.t()
            left = (rest.square() * weights).sum(2, keepdim=True) / 2
        scores += left
        flat = scores.flatten(1)
        if number < len(books) - 1:
            found = flat.topk(min(beam, flat.shape[1]), largest=False).indices  # [n, sums]
        elif flat.device.type == "cpu":  # numpy's argmin is several times faster than torch's
            found = torch.from_numpy(flat.numpy().argmin(1))[:, None]
        else:
            found = flat.argmin(1, keepdim=True)
        kept, codeword = found // len(book), found % len(book)
        codes = torch.cat(
            [
                codes.gather(1, kept[:, :, None].expand(-1, -1, codes.shape[2])),
                codeword[:, :, None],
            ],
            2,
        )
        rest = rest.gather(1, kept[:, :, None].expand(-1, -1, rest.shape[2])) - book[codeword]
    return codes[:, 0]


def sums(books: Tensor, codes: Tensor) -> Tensor:
    """[n, d]: the sums of codewords `codes` [n, M] of codebooks [M, K, d]."""
    total = torch.index_select(books[0], 0, codes[:, 0])
    for number in range(1, len(books)):
        total += torch.index_select(books[number], 0, codes[:, number])
    return total


def fit_books(
    vectors: Vectors,
    count: int,
    codewords: int,
    beam: int,
    iterations: int,
    generator: torch.Generator,
) -> Tensor:
    """Codebooks [M, K, d] for vectors; one is that of k-means.

    Args:
        vectors: the vectors.
        count: M.
        codewords: K.
        beam: as of `nearest_sums`.
        iterations: of k-means, and rounds in which the codebooks are fitted together, at most.
        generator: on the CPU.
    """
    if count == 1:
        return k_means.fit(vectors, codewords, iterations, generator)[None]
    sample = sampled(vectors, SAMPLE, generator)
    values, weights = sample.values, sample.weights
    rest, found = values, []
    for _ in range(count):
        book = k_means.fit(
            DenseVectors(values=rest, weights=weights), codewords, iterations, generator
        )
        rest = rest - book[assign(rest, weights, book)]
        found.append(book)
    books = torch.stack(found)
    best, least = books, float("inf")
    for _ in range(iterations):
        codes = nearest_sums(values, weights, books, beam)
        error = _error(values - sums(books, codes), weights)
        if error < least:
            gain, best, least = 1 - error / least if least < float("inf") else 1.0, books, error
            if gain < SETTLED:
                break
        else:
            break
        books = _moved(books, codes, values, weights)
    return best


def _error(rest: Tensor, weights: Tensor | None) -> float:
    squares = rest.square()
    if weights is not None:
        squares *= weights if weights.dim() == 2 else weights[:, None]
    return float(squares.sum(dtype=torch.float64))


def _moved(books: Tensor, codes: Tensor, values: Tensor, weights: Tensor | None) -> Tensor:
    """Each codeword at the mean of what the others leave of its vectors, book after book."""
    books = books.clone()
    wide = weights if weights is None or weights.dim() == 2 else weights[:, None]
    ones = values.new_ones(len(values), 1) if wide is None else wide
    for number in range(len(books)):
        own = codes[:, number]
        others = values - sums(books, codes) + books[number][own]
        total = sums_by_codeword(others * ones, own, books.shape[1])
        weight = sums_by_codeword(ones, own, books.shape[1])
        mean = (total / weight.clamp(min=torch.finfo(torch.float64).tiny)).to(books.dtype)
        books[number] = torch.where(weight > 0, mean, books[number])
    return books
