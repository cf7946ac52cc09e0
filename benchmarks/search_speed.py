"""Error and speed of the trellis search by the number of paths, with and without feedback.

    python benchmarks/search_speed.py [--rows 64 --columns 2048] [--bits 35/16] [--rounds 3]

All numbers of paths run in turn on the same normal rows and one thread. The first table is without
feedback: with a path for every state the search is the Viterbi algorithm, and errors are given in
terms of its error. The second one has feedback along the rows, in a metric of inputs whose strength
falls off, and gives costs in terms of that of the most paths. Speeds are weights per second of
processor time; the plain form, without llvmlite, runs once for its own speed.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.timing import Timer, add_options, conditions, interleaved
from reallm_compiler.codecs.numerics import list_search
from reallm_compiler.codecs.numerics.gram import damped, factor
from reallm_compiler.codecs.numerics.list_search import SearchProblem
from reallm_compiler.codecs.quantizers.trellis_search import Searcher, states_of
from reallm_compiler.codecs.quantizers.trellis_table import Segments, fit_table
from reallm_compiler.stages import TrellisQuantizer
from reallm_compiler.storage.trellis import SEGMENT, column_widths, sample_segments

PATHS = (16, 32, 64, 128, 256, 512, 1024)


def table_of(params: TrellisQuantizer) -> Tensor:
    """A table for normal values."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sample_segments(params, (4096, 4096), 1), SEGMENT, generator=generator)
    ones = torch.ones_like(values)
    widths = column_widths(params, SEGMENT)
    part = Segments(widths=widths, values=values, scales=ones, shares=ones[:, 0])
    return fit_table(params, [part], generator)


def metric_of(columns: int) -> tuple[Tensor, Tensor]:
    """U and D of a metric of inputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * columns, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mixing *= torch.logspace(0, -1.5, columns, dtype=torch.float64)
    x = x @ mixing.t()
    return factor(damped(x.t() @ x, 0.03))


def cost(problem: SearchProblem, values: Tensor, codes: Tensor) -> float:
    states = states_of(codes, problem.widths, problem.state_bits)
    error = (values - problem.table[states]).to(torch.float64)
    if problem.feedback is not None:
        error = error + error @ problem.feedback.to(torch.float64)
    return float((error.square() @ problem.importance.to(torch.float64)).sum())


def measure(problems: dict[int, SearchProblem], values: Tensor, rounds: int, title: str) -> None:
    ones = torch.ones(1, values.shape[1])
    searchers = {paths: Searcher(problem) for paths, problem in problems.items()}
    calls = {
        str(paths): lambda searcher=searcher: searcher.codes(values, ones)
        for paths, searcher in searchers.items()
    }
    timer: Timer = interleaved(calls, rounds)
    costs = {
        paths: cost(problem, values, searchers[paths].codes(values, ones))
        for paths, problem in problems.items()
    }
    print(f"{title}\n{'paths':>6}  {'cost':>7}  {'Mweights/s':>10}  {'time':>6}")
    least, last = costs[PATHS[-1]], str(PATHS[-1])
    for paths, found in costs.items():
        speed = values.numel() / timer.median(str(paths)) / 1e6
        share = timer.ratio(str(paths), last)
        print(f"{paths:>6}  {found / least:>7.4f}  {speed:>10.3f}  {share:>6.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--bits", default="35/16")
    parser.add_argument("--plain", action="store_true", help="time the plain form too")
    add_options(parser, rounds=3)
    options = parser.parse_args()
    print(conditions(options))
    params = TrellisQuantizer.model_validate({"kind": "trellis", "bits": options.bits})
    values = torch.randn(options.rows, options.columns, generator=torch.Generator().manual_seed(2))
    table = table_of(params)
    widths = column_widths(params, options.columns)
    upper, importance = metric_of(options.columns)

    def problem(paths: int, *, feedback: bool) -> SearchProblem:
        return SearchProblem(
            table=table,
            state_bits=params.state_bits,
            widths=widths,
            importance=importance.float() if feedback else torch.ones(options.columns),
            feedback=upper.triu(1).float() if feedback else None,
            paths=paths,
        )

    for feedback in (False, True):
        problems = {paths: problem(paths, feedback=feedback) for paths in PATHS}
        title = "with feedback" if feedback else "without feedback; the last is Viterbi"
        measure(problems, values, options.rounds, title)
    if options.plain:
        one, ones = problem(64, feedback=True), torch.ones(1, options.columns)
        timer = interleaved({"plain": lambda: list_search.search(one, values, ones)}, 1)
        print(
            f"plain form, 64 paths: {values.numel() / timer.median('plain') / 1e6:.4f} Mweights/s"
        )


if __name__ == "__main__":
    main()
