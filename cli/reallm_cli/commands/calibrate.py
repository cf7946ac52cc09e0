"""`reallm calibrate`: measure a model's statistics once, for compiles to weigh errors by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.libraries import quiet_libraries
from reallm_cli.mistakes import CommandLineError
from reallm_cli.options import cluster_of, cluster_options
from reallm_cli.progress import Reporter, peak_text
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import counted, duration_text, grouped, size_text

if TYPE_CHECKING:
    from reallm_compiler.calibration.events import CalibrateReport, Event, Started

SHOWN = 3
"""Names that a line lists."""


@click.command(
    "calibrate",
    cls=ExampleCommand,
    short_help="Measure a model's statistics.",
    examples=[
        (
            "reallm calibrate path/to/model --text text.txt -o model.stats",
            "256 sequences of a text, for `reallm compile ... --stats model.stats`",
        ),
        (
            "reallm calibrate path/to/model --own-text -o model.stats",
            "the same on text that the model writes itself",
        ),
        (
            "reallm calibrate path/to/model --text t.txt --no-gradients --diagonal 8192 -o m.stats",
            "the inputs alone, and of extents above 8192 the diagonal alone",
        ),
    ],
)
@click.argument("model", metavar="MODEL")
@click.option("--text", multiple=True, metavar="FILE", help="UTF-8 text; repeatable.")
@click.option("-o", "--output", metavar="FILE", help="The file of statistics to write.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="N",
    help="Sequences that are drawn from the text.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens of a sequence.  [default: 2048, or what the model takes]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the drawn sequences and labels.",
)
@click.option(
    "--separator", metavar="TEXT", help="Split the text into documents here. `\\n` is a line end."
)
@click.option("--own-text", is_flag=True, help="Let the model write the text itself.")
@click.option("--no-gradients", is_flag=True, help="Measure the inputs alone, in half the time.")
@click.option(
    "--diagonal",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=0,
    metavar="[N]",
    help="Keep diagonals alone: of all matrices, or of those of more than N rows.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu or cuda."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads that run parts of the text at once.  [default: by cores and memory]",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Parts of the text that machines of a cluster measure by themselves; changes the bytes.",
)
@cluster_options
@click.option(
    "--resume",
    type=click.Choice(["auto", "required", "never"]),
    default="auto",
    show_default=True,
    help="What to do with the remains of an interrupted run of this output.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.pass_obj
def calibrate_command(
    terminal: Terminal,
    model: str,
    text: tuple[str, ...],
    output: str | None,
    samples: int,
    window: int | None,
    seed: int,
    separator: str | None,
    own_text: bool,
    no_gradients: bool,
    diagonal: int | None,
    device: str,
    workers: int | None,
    shards: int,
    ray: str | None,
    shared_storage: bool,
    resume: str,
    as_json: bool,
    force: bool,
) -> int:
    """Measure the second moments of a model's activations and gradients, once.

    MODEL is a checkpoint's folder or a hub id. The file is for recipes that say `statistics:
    required`. One block of the model is in memory at a time. A run that was interrupted goes on
    where it stood when the same command is given again, and ends with the same bytes.
    """
    if output is None:
        raise CommandLineError("no output is named", hint="give `-o NAME.stats`")
    if bool(text) == own_text:
        raise CommandLineError(
            "`--text FILE` and `--own-text` exclude each other" if own_text else "no text is given",
            hint="give one or more with `--text FILE`, or let the model write it: `--own-text`",
        )
    cluster = cluster_of(ray, shared_storage)
    from reallm_compiler.calibration.run import calibrate

    quiet_libraries()
    with CalibrateReporter(terminal) as reporter:
        report = calibrate(
            model,
            output=output,
            text=text,
            samples=samples,
            window=window,
            seed=seed,
            separator=None
            if separator is None
            else separator.replace("\\n", "\n").replace("\\t", "\t"),
            own_text=own_text,
            gradients=not no_gradients,
            diagonal=diagonal,
            device=device,
            workers=workers,
            shards=shards,
            cluster=cluster,
            resume=resume,
            force=force,
            on_event=reporter.on_event,
        )
    if as_json:
        terminal.json(dataclasses.asdict(report))
        return ExitCode.OK
    for line in report_lines(report):
        terminal.data(line)
    again = counted(report.tasks_resumed, "pass", "passes")
    resumed = f", {again} from an earlier run" if report.tasks_resumed else ""
    terminal.log(
        f"wrote `{report.path}`: {counted(report.file_bytes, 'byte')} in "
        f"{duration_text(report.seconds)}{peak_text()}{resumed}"
    )
    return ExitCode.OK


def report_lines(report: CalibrateReport) -> list[str]:
    """What was measured, and what could not be."""
    lines = [
        f"{counted(report.matrices, 'matrix', 'matrices')} measured on "
        f"{grouped(report.tokens)} predicted tokens of {counted(report.sequences, 'sequence')}"
    ]
    for what, found in (
        ("not measured, as no product with them was seen", report.left_out),
        ("reached by no token", report.unreached),
        ("reached by fewer tokens than they have inputs", report.few),
        ("with tokens left out, as a number was not finite", report.not_finite),
        ("with inputs that were always zero", report.dead),
    ):
        if found:
            count = counted(len(found), "matrix", "matrices")
            lines.append(f"{count} {what}: {_listed(found)}")
    return lines


def _listed(found: Sequence[str] | Mapping[str, int]) -> str:
    """Some names, with their numbers where they have any."""
    shown = [
        f"{name} ({grouped(found[name])})" if isinstance(found, Mapping) else name
        for name in list(found)[:SHOWN]
    ]
    return ", ".join(shown) + (", ..." if len(found) > SHOWN else "")


class CalibrateReporter(Reporter):
    """Logs the events of a calibration on stderr."""

    def on_event(self, event: Event) -> None:
        """Log one event."""
        from reallm_compiler.calibration.events import (
            Checked,
            ChunkDone,
            Sampled,
            Started,
            TriedAgain,
        )

        if isinstance(event, Started):
            self.end_bar()
            for line in started_lines(event):
                self._terminal.log(line)
        elif isinstance(event, Checked):
            self.on_checked(event)
        elif isinstance(event, Sampled):
            self._count("own text", "tokens", event.tokens_done, event.tokens)
        elif isinstance(event, ChunkDone):
            self._count("calibrate", "steps", event.steps_done, event.steps)
        elif isinstance(event, TriedAgain):
            self._terminal.log(f"warning: {event.name} is done again: {event.why}")

    def _count(self, label: str, unit: str, done: int, total: int) -> None:
        self.measure(label, unit, done, total, initial=done - 1, last=True)


def started_lines(event: Started) -> list[str]:
    """What is known before the first pass, in words."""
    free = event.memory_free_bytes
    available = f"{size_text(free)} free" if free is not None else "free memory unknown"
    blocks = counted(event.blocks, "block") if event.blocks else "run as a whole"
    lines = [
        f"text    {counted(event.sequences, 'sequence')}, {grouped(event.tokens)} predicted tokens",
        f"model   {counted(event.matrices, 'matrix', 'matrices')} to measure, {blocks}",
        f"file    {grouped(event.file_bytes)} bytes",
        f"disk    {size_text(event.disk_bytes)} with hidden states, "
        f"{size_text(event.disk_free_bytes)} free",
        f"memory  about {size_text(event.memory_bytes)} at most with Python and torch, {available}",
        f"device  {event.device}, {counted(event.workers, 'worker')}",
    ]
    if event.tasks_done:
        lines.append(
            f"resume  {grouped(event.tasks_done)} of {counted(event.tasks, 'pass', 'passes')} "
            "are done"
        )
    if event.left_out:
        lines.append(f"note    not measured: {_listed(event.left_out)}")
    lines += (f"note    {note}" for note in event.notes)
    return lines
