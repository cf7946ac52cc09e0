"""`reallm allocate`: the plan of each matrix that loses least within a number of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import check_recipe_path
from reallm_cli.options import cluster_of, cluster_options
from reallm_cli.progress import Reporter
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import (
    bits_column,
    counted,
    duration_text,
    grouped,
    share_text,
)

if TYPE_CHECKING:
    from reallm_compiler.recipe.allocation import Scope
    from reallm_compiler.search.report import AllocateReport, Lock, Point


@click.command(
    "allocate",
    cls=ExampleCommand,
    short_help="Choose each matrix's plan to a target of bytes.",
    examples=[
        (
            "reallm allocate mine.yaml --model path/to/model --stats model.stats -o lock.yaml",
            "the recipe of least damage for the target that `mine.yaml` names",
        ),
        (
            "reallm allocate mine.yaml --bytes 3.2GB,4GB --plot frontier.png -o lock.yaml",
            "one recipe for each target: lock-3.2GB.yaml and lock-4GB.yaml",
        ),
        (
            "reallm allocate mine.yaml --bits 5/2 --json",
            "for scripts: the choice and the frontier, and no recipe",
        ),
    ],
)
@click.argument("recipe", metavar="RECIPE")
@click.option("--model", metavar="MODEL", help="Checkpoint folder or hub id.")
@click.option(
    "--bytes",
    "sizes",
    metavar="SIZE,...",
    help="The most bytes, such as 3.2GB; several give a recipe each.  [default: the recipe's]",
)
@click.option(
    "--bits",
    "rates",
    metavar="BITS,...",
    help="The most bits per weight, such as 5/2, instead of bytes.",
)
@click.option(
    "--scope",
    type=click.Choice(["file", "coded"]),
    help="What a target counts: all of the file, or what is stored for coded matrices.  "
    "[default: the recipe's, or file for bytes and coded for bits]",
)
@click.option(
    "--stats",
    metavar="FILE",
    help="What `reallm calibrate` measured. Without it the model runs on its own text.",
)
@click.option("-o", "--output", metavar="FILE", help="The recipe to write.")
@click.option(
    "--cache",
    metavar="FOLDER",
    help="Keep here what is measured and coded, for another target and for `compile --cache`.",
)
@click.option("--plot", metavar="FILE", help="Draw the frontier as PNG or SVG.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="Where candidates are coded: auto, cpu, cuda or cuda:N.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Worker processes.  [default: by size, cores and memory]",
)
@cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print the choice and the frontier as JSON.")
@click.option("--force", is_flag=True, help="Replace outputs that exist.")
@click.pass_obj
def allocate_command(
    terminal: Terminal,
    recipe: str,
    model: str | None,
    sizes: str | None,
    rates: str | None,
    scope: Scope | None,
    stats: str | None,
    output: str | None,
    cache: str | None,
    plot: str | None,
    device: str,
    workers: int | None,
    ray: str | None,
    shared_storage: bool,
    as_json: bool,
    force: bool,
) -> int:
    """Choose for each matrix the plan that costs the model least, to an exact number of bytes.

    RECIPE has a section `allocate` with candidates. Each is tried on each matrix, and its damage
    measured; the choice is written as a recipe that `compile` takes as it is.
    """
    cluster = cluster_of(ray, shared_storage)
    check_recipe_path(recipe)
    if plot is not None:
        from reallm_compiler.evaluate.pictures import check_matplotlib, check_picture

        check_matplotlib()
        check_picture(plot)
    from reallm_compiler.search.run import allocate

    with AllocateReporter(terminal) as reporter:
        report = allocate(
            recipe,
            model=model,
            bytes=_listed(sizes),
            bits=_listed(rates),
            scope=scope,
            statistics=stats,
            output=output,
            cache=cache,
            device=device,
            workers=workers,
            cluster=cluster,
            force=force,
            progress=reporter.on_progress,
        )
    if plot is not None:
        from reallm_compiler.search.frontier import draw_frontier

        draw_frontier(plot, report)
    _log_report(terminal, report, plot)
    if as_json:
        terminal.json(report.to_json())
    else:
        _show_report(terminal, report)
    return ExitCode.OK


class AllocateReporter(Reporter):
    """Shows how much is measured: weights, those of a matrix once for each candidate.

    Without gradients runs of the model follow, which have a total of their own.
    """

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal)
        self._totals: list[int] = []

    def on_progress(self, done: int, total: int) -> None:
        """Update the bar; another total begins another step."""
        if self._totals[-1:] != [total]:
            self._totals.append(total)
        runs = len(self._totals) > 1
        self.measure("run" if runs else "measure", "runs" if runs else "weights", done, total)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _log_report(terminal: Terminal, report: AllocateReport, plot: str | None) -> None:
    matrices, tried = report.measured
    terminal.log(
        f"measured {counted(tried, 'candidate')} of {counted(matrices, 'matrix', 'matrices')} and "
        f"chose in {duration_text(report.seconds)}, the choice in "
        f"{duration_text(report.choice_seconds)}"
    )
    if report.left:
        names = ", ".join(report.left[:3]) + (", ..." if len(report.left) > 3 else "")
        terminal.log(
            f"{counted(len(report.left), 'matrix', 'matrices')} that no candidate fits: {names}; "
            "the recipe's own plan stays"
        )
    for lock in report.locks:
        if lock.path is not None:
            terminal.log(f"wrote `{lock.path}`: `reallm compile` takes it as it is")
    if plot is not None:
        terminal.log(f"drew `{plot}`")


def _show_report(terminal: Terminal, report: AllocateReport) -> None:
    show_sheet(terminal, _targets_sheet(report.locks), title="chosen")
    for lock in report.locks:
        terminal.data()
        show_sheet(terminal, _candidates_sheet(lock), title=f"candidates at {lock.target.text}")
    terminal.data()
    what = "file" if report.scope == "file" else "coded matrices"
    points = sorted((*report.frontier, *report.uniform), key=lambda point: point.nbytes)
    show_sheet(terminal, _points_sheet(points), title=f"frontier, by the bytes of the {what}")


def _targets_sheet(locks: tuple[Lock, ...]) -> Sheet:
    bits = bits_column([lock.budget.totals.exact_bits for lock in locks])
    return Sheet(
        columns=["<target", "at most", "file bytes", "exact bits", "KL", "<recipe"],
        rows=[
            (
                lock.target.text,
                grouped(lock.limit),
                grouped(lock.budget.totals.file_bytes),
                rate,
                _kl_text(lock.point.kl),
                lock.path or "-",
            )
            for lock, rate in zip(locks, bits, strict=True)
        ],
    )


def _candidates_sheet(lock: Lock) -> Sheet:
    whole = sum(share.numel for share in lock.candidates.values())
    return Sheet(
        columns=["<candidate", "matrices", "of weights", "bytes"],
        rows=[
            (
                label,
                grouped(share.matrices),
                share_text(share.numel, whole),
                grouped(share.nbytes),
            )
            for label, share in lock.candidates.items()
        ],
    )


def _points_sheet(points: list[Point]) -> Sheet:
    bits = bits_column([point.bits for point in points])
    return Sheet(
        columns=["bytes", "bits", "KL", "<plan"],
        rows=[
            (grouped(point.nbytes), rate, _kl_text(point.kl), point.label or "mix")
            for point, rate in zip(points, bits, strict=True)
        ],
    )


def _kl_text(kl: float) -> str:
    return f"{kl:.4g}"
