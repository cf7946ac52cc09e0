"""`reallm export`: an archive in the format of another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.libraries import quiet_libraries
from reallm_cli.mistakes import CommandLineError, check_archive_path
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.progress import Reporter
from reallm_cli.terminal import Terminal
from reallm_compiler.integrations.formats import FORMATS
from reallm_compiler.numbers import size_text
from reallm_compiler.publish import LIST


@click.command(
    "export",
    cls=ExampleCommand,
    short_help="Write an archive in the format of another program.",
    examples=[
        (
            "reallm export model.reallm --to compressed-tensors -o folder",
            "for vLLM, with the same weights to the last bit",
        ),
        ("reallm export model.reallm --to hf -o folder", "for transformers with reallm, packed"),
        ("reallm export model.reallm --to gguf -o model.gguf", "for llama.cpp"),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.option("--to", "kind", required=True, type=click.Choice(FORMATS), help="The format.")
@click.option("-o", "--output", required=True, metavar="PATH", help="Folder or file to write.")
@click.option(
    "--quality",
    metavar="FILE",
    help="What `reallm eval --json` printed, for the model card of `hf`.",
)
@decoder_option
@cost_option
@click.option(
    "--force",
    is_flag=True,
    help="Replace the output; a folder only if reallm wrote it and nobody changed it.",
)
@click.pass_obj
def export_command(
    terminal: Terminal,
    archive: str,
    kind: str,
    output: str,
    quality: str | None,
    decoder: str | None,
    allow_cost: bool,
    force: bool,
) -> int:
    """Write the model of an archive in the format of another program.

    The weights that the other program computes are those of the archive, to the last bit; where the
    format cannot hold them so, nothing is written, and the reasons are shown.
    Prints the path of what is written.
    """
    check_archive_path(archive)
    measured = None if quality is None else _measured(quality)
    from reallm_compiler.integrations.export import export

    quiet_libraries()
    with Reporter(terminal) as reporter:
        report = export(
            archive,
            output,
            to=kind,
            force=force,
            quality=measured,
            decoder=decoder,
            allow_cost=allow_cost,
            progress=lambda done, total: reporter.measure("export", "matrices", done, total),
        )
    if report.dense:
        terminal.log(f"as dense weights: {', '.join(report.dense)}")
    written = [report.path] if report.path.is_file() else list(report.path.rglob("*"))
    size = sum(path.stat().st_size for path in written if path.is_file() and path.name != LIST)
    terminal.log(f"wrote {size_text(size)}")
    terminal.data(terminal.text(str(report.path)))
    return ExitCode.OK


def _measured(path: str) -> dict[str, Any]:
    """The numbers of an evaluation."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise CommandLineError(f"`--quality` cannot be read: {why}", location=path) from error
    if not isinstance(found, dict):
        raise CommandLineError(
            "`--quality` is no evaluation",
            location=path,
            hint="give what `reallm eval --json` printed",
        )
    return found
