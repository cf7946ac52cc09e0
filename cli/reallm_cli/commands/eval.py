"""`reallm eval`: perplexity by the literature's protocol, and the distance to a reference."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.libraries import quiet_harness, quiet_libraries
from reallm_cli.mistakes import CommandLineError, check_archive_path, check_text_path
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.progress import Reporter
from reallm_cli.tables import Sheet, show_facts, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.distribution import VERSION
from reallm_compiler.numbers import counted, grouped


@click.command(
    "eval",
    cls=ExampleCommand,
    short_help="Measure perplexity on a text.",
    examples=[
        ("reallm eval model.reallm --text wiki.test.raw", "perplexity of an archive on a text"),
        (
            "reallm eval model.reallm --text wiki.test.raw --reference path/to/model",
            "also its KL divergence from the original, in nats per token",
        ),
        (
            "reallm eval model.reallm --text wiki.test.raw --packed",
            "run it from its codes, in the memory of the file",
        ),
        (
            "reallm eval model.reallm --text wiki.test.raw --kv-cache kv-4bit --reference model",
            "token by token through a quantized cache of keys and values",
        ),
        (
            "reallm eval path/to/model --text stories.txt --separator '<|endoftext|>'",
            "each document by itself after one BOS token",
        ),
    ],
)
@click.argument("model", metavar="MODEL_OR_ARCHIVE")
@click.option("--text", metavar="FILE", help="UTF-8 text to evaluate on.")
@click.option("--tasks", metavar="NAMES", help="Score these lm-eval tasks instead, by commas.")
@click.option("--task-folder", metavar="DIR", help="YAML files of local tasks.")
@click.option(
    "--shots", type=click.IntRange(min=0), default=0, show_default=True, help="For tasks."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Questions per task.")
@click.option(
    "--window",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens per window.  [default: the smaller of 2048 and the model's positions]",
)
@click.option("--adapter", metavar="FILE", help="An adapter of the archive to evaluate with.")
@decoder_option
@cost_option
@click.option("--packed", is_flag=True, help="Run the archive from its codes, undecoded.")
@click.option("--reference", metavar="MODEL", help="Measure the KL divergence from this model.")
@click.option(
    "--separator",
    metavar="TEXT",
    help="Split the text into documents here, each evaluated by itself. `\\n` is a line end.",
)
@click.option(
    "--random-windows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw N windows from documents that are long enough, as the literature does for C4.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of that draw.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Batch size in windows.  [default: by size]",
)
@click.option(
    "--kv-cache",
    metavar="NAME|RECIPE",
    help="Feed the model through a quantized cache of keys and values: kv-8bit, kv-4bit, kv-3bit, "
    "kv-2bit, a recipe or an archive that has one.",
)
@click.option(
    "--kv-step",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Tokens at a time with `--kv-cache`.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu or cuda."
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.pass_obj
def eval_command(
    terminal: Terminal,
    model: str,
    text: str | None,
    tasks: str | None,
    task_folder: str | None,
    shots: int,
    limit: int | None,
    window: int | None,
    adapter: str | None,
    decoder: str | None,
    allow_cost: bool,
    packed: bool,
    reference: str | None,
    separator: str | None,
    random_windows: int | None,
    seed: int,
    batch: int | None,
    kv_cache: str | None,
    kv_step: int,
    device: str,
    as_json: bool,
) -> int:
    """Measure the perplexity of a model or an archive on a text.

    The text is tokenised once with the tokenizer's defaults and cut into windows that do not
    overlap; the tail is dropped; the mean is over predicted tokens. With `--random-windows` windows
    are drawn instead; with `--separator` documents stand by themselves.
    """
    if text is not None:
        check_text_path(text)
    for path in (model, reference):
        if path is not None and path.endswith(".reallm"):
            check_archive_path(path)
    if adapter is not None:
        check_archive_path(adapter)
    if (text is None) == (tasks is None):
        raise CommandLineError("give a text with `--text FILE`, or tasks with `--tasks NAMES`")
    if kv_cache is not None and tasks is not None:
        raise CommandLineError(
            "`--kv-cache` is for `--text`: answers of tasks are scored without generating"
        )
    mode: Literal["dense", "packed"] = "packed" if packed else "dense"
    if tasks is not None or text is None:
        return _tasks(
            terminal,
            model,
            (tasks or "").split(","),
            mode=mode,
            folder=task_folder,
            adapter=adapter,
            decoder=decoder,
            allow_cost=allow_cost,
            shots=shots,
            limit=limit,
            batch=batch or 1,
            device=device,
            as_json=as_json,
        )
    from reallm_compiler.evaluate import evaluate_files

    quiet_libraries()
    with Reporter(terminal) as reporter:
        result = evaluate_files(
            model,
            text,
            mode=mode,
            window=window,
            separator=_unescaped(separator),
            adapter=adapter,
            decoder=decoder,
            allow_cost=allow_cost,
            reference=reference,
            random_windows=random_windows,
            seed=seed,
            batch=batch,
            kv_cache=kv_cache,
            kv_step=kv_step,
            device=device,
            progress=partial(reporter.measure, "eval", "windows", last=True),
            load_progress=partial(reporter.measure, "load", "tensors"),
        )
    if as_json:
        named = {"model": model, "text": text, "version": VERSION}
        terminal.json(result.to_json() | named)
        return ExitCode.OK
    most = "at most " if result.protocol == "documents" else ""
    facts = [
        ("perplexity", f"{result.perplexity:.4f}"),
        ("bits per byte", f"{result.bits_per_byte:.4f}"),
        ("loss", f"{result.loss:.6f} nats per token"),
        ("tokens", f"{grouped(result.tokens)} predicted, {grouped(result.dropped_tokens)} dropped"),
        (result.protocol, f"{grouped(result.windows)} of {most}{result.window} tokens"),
    ]
    if result.kl is not None and result.reference_perplexity is not None:
        facts.append(("reference", f"perplexity {result.reference_perplexity:.4f}"))
        facts.append(("KL", f"{result.kl:.6f} nats per token from the reference"))
    if result.top1_agreement is not None:
        facts.append(("same top token", f"{100 * result.top1_agreement:.2f} %"))
    show_facts(terminal, facts)
    return ExitCode.OK


def _tasks(
    terminal: Terminal,
    model: str,
    names: list[str],
    *,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> int:
    """Scores of lm-eval's tasks."""
    bars = terminal.err.is_terminal
    quiet_harness(bars=bars)
    from reallm_compiler.evaluate.zero_shot import zero_shot

    tasks = [name.strip() for name in names if name.strip()]
    with Reporter(terminal) as reporter:

        def loading(done: int, total: int) -> None:
            reporter.measure("load", "tensors", done, total)
            if done == total:  # the harness has bars of its own
                reporter.end_bar()

        found = zero_shot(model, tasks, bars=bars, progress=loading, **options)
    if as_json:
        named = {"model": model, "version": VERSION}
        terminal.json(found.to_json() | named)
        return ExitCode.OK
    rows = [
        (task, grouped(found.questions[task]), metric, f"{100 * value:.2f} %")
        for task, metrics in found.scores.items()
        for metric, value in metrics.items()
        if not metric.endswith("_stderr")
    ]
    show_sheet(terminal, Sheet(columns=["<task", "questions", "<metric", "score"], rows=[*rows]))
    terminal.data(f"{counted(found.shots, 'shot')}, lm-eval {found.version}")
    return ExitCode.OK


def _unescaped(separator: str | None) -> str | None:
    """The separator with `\\n` and `\\t` read as line end and tab."""
    if separator is None:
        return None
    return separator.replace("\\n", "\n").replace("\\t", "\t")
