"""`reallm report`: one HTML file that shows what is in archives."""

from __future__ import annotations

from typing import Literal

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.libraries import quiet_libraries
from reallm_cli.mistakes import CommandLineError, check_archive_path, check_text_path
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.progress import Reporter
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import counted


@click.command(
    "report",
    cls=ExampleCommand,
    short_help="Write an HTML file that shows what is in archives.",
    examples=[
        ("reallm report model.reallm -o report.html", "where the bytes are, bits and errors"),
        ("reallm report two.reallm three.reallm -o report.html", "two archives side by side"),
        (
            "reallm report two.reallm three.reallm --reference DIR --text text.txt -o report.html",
            "also spectra, distributions, perplexity and KL divergence",
        ),
    ],
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", required=True, help="The HTML file to write.")
@click.option("--reference", metavar="MODEL", help="The checkpoint that the archives were made of.")
@click.option("--text", metavar="FILE", help="UTF-8 text to measure the archives on.")
@click.option(
    "--frontier", metavar="FILE", help="What `reallm allocate --json` printed, to be drawn too."
)
@click.option("--window", type=click.IntRange(min=2), metavar="N", help="Tokens per window.")
@click.option("--packed", is_flag=True, help="Run archives on the text from their codes.")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="For the text.")
@decoder_option
@cost_option
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.pass_obj
def report_command(
    terminal: Terminal,
    files: tuple[str, ...],
    output: str,
    reference: str | None,
    text: str | None,
    frontier: str | None,
    window: int | None,
    packed: bool,
    device: str,
    decoder: str | None,
    allow_cost: bool,
    force: bool,
) -> int:
    """Write one HTML file about archives of models and adapters, to be opened in a browser.

    It shows where the bytes are, bits and error by layer, errors by block, recipes, provenance and
    all matrices. The file needs nothing from elsewhere, and the same archives give the same bytes.
    """
    for path in files:
        check_archive_path(path)
    if text is not None:
        check_text_path(text)
    elif window is not None or packed:
        raise CommandLineError(
            "`--window` and `--packed` go with `--text FILE`", location="`reallm report`"
        )
    from reallm_compiler.report import write_report

    mode: Literal["dense", "packed"] = "packed" if packed else "dense"
    if text is not None:
        quiet_libraries()
    with Reporter(terminal) as reporter:
        written = write_report(
            files,
            output,
            reference=reference,
            text=text,
            planned=frontier,
            mode=mode,
            window=window,
            device=device,
            decoder=decoder,
            allow_cost=allow_cost,
            force=force,
            on_step=reporter.measure,
        )
    for remark in written.remarks:
        terminal.log(f"warning: {remark}")
    terminal.log(f"wrote {counted(written.nbytes, 'byte')}; open it in a browser")
    terminal.data(terminal.text(str(written.path)))
    return ExitCode.OK
