"""k-means beside faiss: the time to reach faiss's error, on the same vectors and threads.

    python benchmarks/kmeans_speed.py [--rows 4096 --columns 4096] [--threads 1] [--rounds 9]

Vectors are normal weights, as many as a matrix holds, or 256 for each codeword: the number from
which faiss learns by default. faiss runs its `Kmeans` with 25 iterations and its defaults, on all
vectors that it is given; ours runs as it does in a recipe (at most 25 iterations on each sample and
on all, see codecs/numerics/k_means.py). Runs alternate, each with a seed of its own, and both
errors are means over all vectors, measured by the same code. `reach` is the time until one of our
passes over all vectors shows an error not above that of the faiss run before it, or until the end
where none does (`reached` counts the rounds where one did); `whole` is that of our whole run, which
goes on to a smaller error.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch

from benchmarks.timing import Timer, add_options, conditions
from reallm_compiler.codecs.numerics import k_means
from reallm_compiler.codecs.numerics.assignment import assign
from reallm_compiler.codecs.numerics.vectors import DenseVectors, Vectors

SETTINGS = ((2, 2), (3, 2), (2, 4))
"""Bits per weight and dimension."""


def error(values: torch.Tensor, count: torch.Tensor) -> float:
    total = 0.0
    for part in values.split(1 << 16):
        index = assign(part, None, count)
        total += float((part - count[index]).square().sum(dtype=torch.float64))
    return total / values.numel()


class ReachedError(Exception):
    """The wanted error was met."""


def ours(values: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return k_means.fit(DenseVectors(values=values), count, 25, generator)


def reach(values: torch.Tensor, count: int, seed: int, wanted: float) -> bool:
    """Run ours until a pass over all vectors has an error of at most `wanted`; whether one had."""
    statistics_of = k_means._statistics

    def watched(
        vectors: Vectors, codebook: torch.Tensor
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        found = statistics_of(vectors, codebook)
        if vectors.count == len(values) and found[0] <= wanted * values.numel():
            raise ReachedError
        return found

    k_means._statistics = watched
    try:
        ours(values, count, seed)
    except ReachedError:
        return True
    finally:
        k_means._statistics = statistics_of
    return False


def faiss_run(values: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    import faiss

    model = faiss.Kmeans(
        values.shape[1], count, niter=25, seed=seed, max_points_per_centroid=len(values)
    )
    model.train(values.numpy())
    return torch.from_numpy(model.centroids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    add_options(parser, rounds=9)
    given = parser.parse_args()
    import faiss

    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    print(
        f"{given.rows} x {given.columns} normal weights, {conditions(given)}, "
        f"faiss {faiss.__version__}\n"
    )
    print(
        "| bits, dim | codewords | vectors | faiss (s) | reach (s) | reach / faiss | reached "
        "| whole (s) | our error | faiss's error |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    few = torch.randn(4096, 2)
    faiss_run(few, 16, 0), ours(few, 16, 0)  # what a first call does once is not measured
    for bits, dim in SETTINGS:
        generator = torch.Generator().manual_seed(0)
        everything = torch.randn(given.rows * given.columns // dim, dim, generator=generator)
        count = 2 ** (bits * dim)
        for values in (everything[: 256 * count], everything):
            timer = Timer(given.clock)
            errors: tuple[list[float], list[float]] = ([], [])
            reached = 0
            for seed in range(given.rounds):
                theirs = timer.run("faiss", partial(faiss_run, values, count, seed))
                errors[1].append(error(values, theirs))
                reached += timer.run("reach", partial(reach, values, count, seed, errors[1][-1]))
                found = timer.run("whole", partial(ours, values, count, seed))
                errors[0].append(error(values, found))
            print(
                f"| {bits}, {dim} | {count} | {len(values):,} | {timer.median('faiss'):.3f} "
                f"| {timer.median('reach'):.3f} | {timer.ratio('reach', 'faiss'):.2f} "
                f"| {reached}/{given.rounds} | {timer.median('whole'):.3f} "
                f"| {statistics.median(errors[0]):.6f} | {statistics.median(errors[1]):.6f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
