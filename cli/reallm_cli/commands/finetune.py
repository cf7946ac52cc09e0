"""`reallm finetune`: tune the low-rank part of an archive, block by block and end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from reallm_cli.commands.finetune_memory import dry_run_memory, memory_text
from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.libraries import quiet_libraries
from reallm_cli.mistakes import CommandLineError, check_archive_path
from reallm_cli.opened import is_archive
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.progress import Reporter, peak_text
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.errors import RecipeError
from reallm_compiler.numbers import counted, duration_text, grouped
from reallm_compiler.recipe.document import read_text
from reallm_compiler.recipe.nodes import to_plain
from reallm_compiler.recipe.scalars import read_scalar

if TYPE_CHECKING:
    from reallm_compiler.finetune import BatchDone, Event


@click.command(
    "finetune",
    cls=ExampleCommand,
    short_help="Tune the low-rank part of an archive.",
    examples=[
        (
            "reallm finetune model.reallm --model path/to/model --text text.txt -o tuned.adapter",
            "block by block, then end to end, with the paper's settings",
        ),
        (
            "reallm finetune a.reallm --model original --text t.txt -o b.reallm --into --stage e2e",
            "end to end alone, and a new archive instead of an adapter",
        ),
        (
            "reallm finetune reallm-2bit-tunable --model config.json --dry-run "
            "--set precision=bfloat16",
            "the memory that it would take, for any config",
        ),
        (
            "reallm finetune a.reallm --model original --text t.txt -o a.adapter "
            "--learn scales,tables,norms",
            "what any archive has: its numbers that are no codes",
        ),
        (
            "torchrun --nproc-per-node 8 -m reallm_cli finetune a.reallm --model original --text "
            "t.txt ...",
            "on eight GPUs, each with an eighth of every step; with `--shard` of the weights too",
        ),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.option("--model", required=True, metavar="MODEL", help="The model it was compiled from.")
@click.option("--text", multiple=True, metavar="FILE", help="UTF-8 text to tune on; repeatable.")
@click.option("-o", "--output", metavar="FILE", help="The adapter (or archive) to write.")
@click.option("--into", is_flag=True, help="Write a whole model archive instead of an adapter.")
@click.option(
    "--stage",
    "stages",
    metavar="STAGES",
    help="block (block by block), e2e (end to end), or both: block,e2e.",
)
@click.option(
    "--learn",
    metavar="NAMES",
    help="What is tuned, such as factors,gains,scales,tables,norms,biases; factors,gains if not "
    "given.",
)
@click.option("--adapter", metavar="FILE", help="Begin with this adapter of the archive.")
@decoder_option
@cost_option
@click.option("--packed", is_flag=True, help="Leave the coded parts packed: less memory, slower.")
@click.option(
    "--shard",
    is_flag=True,
    help="Under torchrun: shard the frozen weights among the processes (FSDP2).",
)
@click.option("--window", type=click.IntRange(min=2), metavar="N", help="Tokens per sequence.")
@click.option(
    "--separator", metavar="TEXT", help="Split the text into documents here. `\\n` is a line end."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any setting by its name, such as `e2e.lr=1e-4`; repeatable.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu or cuda."
)
@click.option(
    "--resume",
    type=click.Choice(["auto", "required", "never"]),
    default="auto",
    show_default=True,
    help="What to do with the state of an interrupted run of this output.",
)
@click.option("--dry-run", is_flag=True, help="Show the memory it would take, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.pass_obj
def finetune_command(
    terminal: Terminal,
    archive: str,
    model: str,
    text: tuple[str, ...],
    output: str | None,
    into: bool,
    stages: str | None,
    learn: str | None,
    adapter: str | None,
    decoder: str | None,
    allow_cost: bool,
    packed: bool,
    shard: bool,
    window: int | None,
    separator: str | None,
    settings: tuple[str, ...],
    device: str,
    resume: str,
    dry_run: bool,
    as_json: bool,
    force: bool,
) -> int:
    """Tune the factors and gains of an archive, and with --learn its scales, tables and norms; its
    codes never change.

    First each block follows the original block, then all is tuned at once on the text.
    The result is an adapter, bound to the archive by its digest. A run that was interrupted goes
    on where it stood when the same command is given again, and ends with the same bytes.
    Settings are the paper's, over them those of the recipe's `finetune` section, over them the
    options; docs/finetune.md lists them.
    """
    if not dry_run or is_archive(archive):
        check_archive_path(archive)
    from reallm_compiler.finetune import finetune
    from reallm_compiler.finetune.processes import ElsewhereError, is_main

    plain = _settings(settings)
    if stages is not None:
        plain["stages"] = [stage.strip() for stage in stages.split(",") if stage.strip()]
    if learn is not None:
        plain["learn"] = [name.strip() for name in learn.split(",") if name.strip()]
    if window is not None:
        plain["window"] = window
    if separator is not None:
        plain["separator"] = separator.replace("\\n", "\n").replace("\\t", "\t")
    if dry_run:
        return dry_run_memory(terminal, archive, model, plain, packed=packed, as_json=as_json)
    if output is None:
        raise CommandLineError("no output is named", hint="give `-o NAME.adapter`")
    quiet_libraries()
    with _FinetuneReporter(terminal) as reporter:
        try:
            report = finetune(
                archive,
                model=model,
                text=text,
                output=output,
                options=plain,
                mode="packed" if packed else "dense",
                adapter=adapter,
                decoder=decoder,
                allow_cost=allow_cost,
                into=into,
                shard=shard,
                device=device,
                resume=resume,
                force=force,
                on_event=reporter.on_event,
            )
        except ElsewhereError:  # the process that failed first says why
            return ExitCode.CANNOT_FINETUNE
    if not is_main():
        return ExitCode.OK
    if as_json:
        terminal.json(
            {
                "path": report.path,
                "blocks": [
                    {"block": row.block, "before": row.before, "after": row.after}
                    for row in report.blocks
                ],
                "before": report.before,
                "after": report.after,
                "diverged": report.diverged,
                "rounding_error": report.rounding_error,
                "file_bytes": report.file_bytes,
                "seconds": report.seconds,
                "steps_per_second": report.steps_per_second,
            }
        )
        return ExitCode.OK
    if report.blocks:
        rows = [
            (str(row.block), f"{row.before:.6g}", f"{row.after:.6g}", str(row.epochs))
            for row in report.blocks
        ]
        columns = ["block", "error before", "error after", "passes"]
        show_sheet(terminal, Sheet(columns=columns, rows=[*rows]), title="held-out, by block")
    if report.before is not None and report.after is not None:
        terminal.data(
            f"held-out loss end to end: {report.before:.4f} before, {report.after:.4f} after"
        )
    if report.diverged is not None:
        terminal.log(
            f"warning: the held-out loss was twice that before tuning at step {report.diverged}: "
            "no more steps were made, and the best state is kept; give a smaller `e2e.lr`"
        )
    terminal.data(f"rounding of the factors: at most {100 * report.rounding_error:.3f} %")
    terminal.log(
        f"wrote `{report.path}`: {counted(report.file_bytes, 'byte')} in "
        f"{duration_text(report.seconds)}{peak_text()}"
    )
    return ExitCode.OK


def _settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """`--set` as nested plain data."""
    plain: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise CommandLineError(
                f"`--set {setting}` has no value", hint="write NAME=VALUE, such as `e2e.lr=1e-4`"
            )
        *outer, last = path.split(".")
        level = plain
        for key in outer:
            level = level.setdefault(key, {})
            if not isinstance(level, dict):
                raise CommandLineError(f"`--set {setting}`: `{key}` is a value, not a group")
        level[last] = _value(setting, value)
    return plain


def _value(setting: str, text: str) -> Any:  # noqa: ANN401
    """A value as it would be read in a recipe; lists and quoted texts as YAML."""
    try:
        if not text.startswith(("[", "{", "'", '"')):
            return read_scalar(text)
        return to_plain(read_text(text, "value")[0])
    except ValueError as error:
        raise CommandLineError(f"`--set {setting}`: {error}") from None
    except RecipeError as error:
        raise CommandLineError(f"`--set {setting}`: {error.problems[0].message}") from None


class _FinetuneReporter(Reporter):
    """Logs the events of a run on stderr."""

    def on_event(self, event: Event) -> None:
        """Log one event."""
        from reallm_compiler.finetune import (
            BatchDone,
            BlockDone,
            MatricesWritten,
            Started,
            TensorsRead,
        )

        log = self._terminal.log
        if isinstance(event, TensorsRead):
            self.measure(f"load the {event.model}", "tensors", event.done, event.total)
        elif isinstance(event, Started):
            self.end_bar()
            log(f"tuned   {grouped(event.parameters)} parameters of {event.matrices} matrices")
            log(
                f"text    {counted(event.sequences, 'sequence')}, {grouped(event.tokens)} "
                f"predicted tokens; {event.held_out} held out"
            )
            log(f"memory  {memory_text(event.memory)}")
            if event.resumed is not None:
                log(f"resume  at {event.resumed}")
        elif isinstance(event, BatchDone):
            self._on_batch(event)
        elif isinstance(event, MatricesWritten):
            self.measure("write", "matrices", event.done, event.total)
        elif isinstance(event, BlockDone):
            self.end_bar()
            passes = counted(event.epochs, "pass", "passes")
            log(
                f"block {event.block + 1} of {event.blocks}: held-out error "
                f"{event.before:.5g} -> {event.after:.5g} in {passes}"
            )
        else:
            self._measure("end to end", "steps", event.step, event.steps, last=True)
            if event.held_out is not None:
                log(f"step {event.step} of {event.steps}: held-out loss {event.held_out:.4f}")

    def _on_batch(self, event: BatchDone) -> None:
        """Show the progress of a block: its inputs and targets, then its passes."""
        title = f"block {event.block + 1} of {event.blocks}"
        if not event.epoch:
            self._measure(f"{title}, inputs and targets", "batches", event.batch, event.batches)
            return
        done = (event.epoch - 1) * event.batches + event.batch
        label = f"{title}, {event.epochs} passes at most"
        self._measure(label, "batches", done, event.epochs * event.batches)

    def _measure(self, label: str, unit: str, done: int, total: int, *, last: bool = False) -> None:
        self.measure(label, unit, done, total, initial=done - 1, last=last)
