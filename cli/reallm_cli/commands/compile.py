"""`reallm compile`: a recipe and a checkpoint into one archive."""

from __future__ import annotations

import math
import time

import click

from reallm_cli.commands.inspect import show_archive
from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import check_recipe_path
from reallm_cli.opened import open_facts
from reallm_cli.options import cluster_of, cluster_options
from reallm_cli.progress import ProgressBar, Reporter
from reallm_cli.terminal import Terminal
from reallm_cli.views import show_matrices
from reallm_compiler.execute.events import Checked, Event, FellBack, Preflight, Training, TriedAgain
from reallm_compiler.numbers import (
    amount_text,
    counted,
    duration_text,
    error_text,
    grouped,
    rate_text,
    size_text,
)

TRAINING_SECONDS = 10.0
"""Seconds between two lines about trainings."""


@click.command(
    "compile",
    cls=ExampleCommand,
    short_help="Compile a model into an archive.",
    examples=[
        (
            "reallm compile reallm-2bit --model path/to/model --stats model.stats -o model.reallm",
            "compile a checkpoint by a shipped recipe, with its statistics",
        ),
        (
            "reallm compile reallm-2bit-data-free --model path/to/model -o model.reallm",
            "the same bits without statistics, with a larger loss",
        ),
        (
            "reallm compile mine.yaml --only '*.q_proj'",
            "try the recipe on some matrices: their bits and errors, no file",
        ),
        (
            "reallm compile mine.yaml --ray auto --workers 64",
            "on the Ray cluster that this machine is a node of",
        ),
        (
            "reallm compile mine.yaml --resume required",
            "resume an interrupted compile, and never start over by mistake",
        ),
    ],
)
@click.argument("recipe", metavar="RECIPE")
@click.option("--model", metavar="MODEL", help="Checkpoint folder or hub id.")
@click.option("-o", "--output", metavar="FILE", help="The archive to write.")
@click.option(
    "--stats",
    metavar="FILE",
    help="What `reallm calibrate` measured, for a recipe that needs it.",
)
@click.option(
    "--text",
    multiple=True,
    metavar="FILE",
    help="UTF-8 text by which blocks learn, for a recipe with `fit`; repeatable.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="Where matrices are encoded: auto, cpu, cuda or cuda:N.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Worker processes.  [default: by size, cores and memory]",
)
@cluster_options
@click.option(
    "--only",
    metavar="PATTERN",
    help="Try the matrices whose names match; report their errors and write nothing.",
)
@click.option(
    "--resume",
    type=click.Choice(["auto", "required", "never"]),
    default="auto",
    show_default=True,
    help="What to do with the remains of an interrupted compile of this output.",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option(
    "--cache",
    metavar="DIR",
    help="Folder of coded matrices: those that are there are not coded again, others are kept.",
)
@click.pass_obj
def compile_command(
    terminal: Terminal,
    recipe: str,
    model: str | None,
    output: str | None,
    stats: str | None,
    text: tuple[str, ...],
    device: str,
    workers: int | None,
    ray: str | None,
    shared_storage: bool,
    only: str | None,
    resume: str,
    force: bool,
    cache: str | None,
) -> int:
    """Compile a model by a recipe into one verified archive.

    RECIPE is a shipped recipe's name or a YAML file. An interrupted compile resumes
    where it stopped when the same command is given again, and ends with the same bytes.
    """
    cluster = cluster_of(ray, shared_storage)
    check_recipe_path(recipe)
    from reallm_compiler.execute.run import compile_model

    with CompileReporter(terminal) as reporter:
        report = compile_model(
            recipe,
            model=model,
            output=output,
            statistics=stats,
            text=text or None,
            device=device,
            workers=workers,
            cluster=cluster,
            only=only,
            resume=resume,
            force=force,
            cache=cache,
            on_event=reporter.on_event,
        )
    if report.path is None:
        show_matrices(terminal, report.budget, report.errors)
        if report.whole_seconds is not None:
            took = duration_text(report.whole_seconds)
            terminal.log(f"at this rate the whole model takes about {took}")
        terminal.log("a trial: nothing was written")
        return ExitCode.OK
    again = f", {counted(report.tasks_resumed, 'step')} from an earlier run"
    terminal.log(
        f"wrote `{report.path}`: {counted(report.budget.totals.file_bytes, 'byte')} in "
        f"{duration_text(report.seconds)}{again if report.tasks_resumed else ''}"
    )
    show_archive(terminal, open_facts(report.path))
    return ExitCode.OK


class CompileReporter(Reporter):
    """Logs the events of a compile on stderr."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal)
        self._operations = 0
        self._workers = 1
        self._logged_at = -math.inf

    def on_event(self, event: Event) -> None:
        """Log one event."""
        if isinstance(event, Preflight):
            for line in preflight_lines(event):
                self._terminal.log(line)
            self._bar = ProgressBar(
                self._terminal,
                "compile",
                total=event.tasks,
                unit="steps",
                work=event.numel,
                initial=event.tasks_done,
                initial_work=event.numel_done,
                rate=rate_text,
            ).__enter__()
            self._operations = event.operations
            self._workers = event.workers
        elif isinstance(event, Checked):
            self.on_checked(event)
        elif isinstance(event, Training):
            self._on_training(event)
        elif isinstance(event, FellBack):
            self._terminal.log(
                f"warning: {event.name}: the error became NaN or infinite in epoch {event.epoch}, "
                f"step {event.step}; the best state before is kept (a smaller `lr` may go on)"
            )
        elif isinstance(event, TriedAgain):
            self._terminal.log(f"warning: {event.name} is done again: {event.why}")
        elif self._bar is not None:
            self._bar.update(event.tasks_done, event.numel_done)

    def _on_training(self, event: Training) -> None:
        """Log the progress of a training: at its start, then every `TRAINING_SECONDS`."""
        now = time.monotonic()
        if now - self._logged_at < TRAINING_SECONDS:
            return
        self._logged_at = now
        whole = self._operations / event.operations_per_second / self._workers
        self._terminal.log(
            f"{event.name}: epoch {grouped(event.epoch)} of {grouped(event.epochs)}, "
            f"error {error_text(event.error)}, {duration_text(event.seconds_left)} left; "
            f"all trainings at this rate: {duration_text(whole)}"
        )


def preflight_lines(event: Preflight) -> list[str]:
    """What is known before the first matrix, in words."""
    lines = []
    if event.file_bytes:
        lines.append(
            f"file    {grouped(event.file_bytes)} bytes, {grouped(event.numel)} coded weights"
        )
        lines.append(
            f"disk    {size_text(event.disk_bytes)} to reserve, "
            f"{size_text(event.disk_free_bytes)} free"
        )
    free = event.memory_free_bytes
    available = f"{size_text(free)} free" if free is not None else "free memory unknown"
    lines.append(
        f"memory  about {size_text(event.memory_bytes)} at most with Python and torch, {available}"
    )
    line = f"device  {event.device}, {counted(event.workers, 'worker')}"
    if event.device_bytes is not None and event.device_free_bytes is not None:
        line += (
            f", about {size_text(event.device_bytes)} of its memory at most, "
            f"{size_text(event.device_free_bytes)} free"
        )
    lines.append(line)
    if event.operations:
        lines.append(f"train   {amount_text(event.operations, 'FLOP')} in all")
    if event.tasks_done:
        lines.append(
            f"resume  {grouped(event.tasks_done)} of {counted(event.tasks, 'step')} are done"
        )
    lines += (f"note    {note}" for note in event.notes)
    return lines
