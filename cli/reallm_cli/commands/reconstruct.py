"""`reallm reconstruct`: an archive as a plain Hugging Face folder."""

from __future__ import annotations

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import CommandLineError, check_archive_path
from reallm_cli.options import cost_option, decoder_option
from reallm_cli.progress import BytesReporter
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import counted, size_text
from reallm_compiler.publish import LIST


@click.command(
    "reconstruct",
    cls=ExampleCommand,
    short_help="Turn an archive back into a model folder.",
    examples=[
        (
            "reallm reconstruct model.reallm -o model-back",
            "write safetensors, config and tokenizer into the folder `model-back`",
        ),
        (
            "reallm reconstruct model.reallm --adapter tuned.adapter -o tuned-model",
            "with the factors and gains of an adapter",
        ),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--adapter", metavar="FILE", help="Put this adapter of the archive in.")
@decoder_option
@cost_option
@click.option(
    "--coded-only",
    is_flag=True,
    help="Leave out factors and gains: the base for `reallm adapter export`.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace a folder that reallm wrote and that nobody changed; any other is refused.",
)
@click.pass_obj
def reconstruct(
    terminal: Terminal,
    archive: str,
    output: str,
    adapter: str | None,
    decoder: str | None,
    allow_cost: bool,
    coded_only: bool,
    force: bool,
) -> int:
    """Turn an archive back into a plain Hugging Face folder.

    The weights are decoded to the model's own type; any program that reads safetensors can load
    the folder. Prints the folder's path.
    """
    check_archive_path(archive)
    if adapter is not None:
        check_archive_path(adapter)
    if adapter is not None and coded_only:
        raise CommandLineError("`--coded-only` leaves out what `--adapter` puts in")
    from reallm_compiler.reader.reconstruct import reconstruct as write_folder

    with BytesReporter(terminal, "reconstruct") as reporter:
        folder = write_folder(
            archive,
            output,
            force=force,
            coded_only=coded_only,
            adapter=adapter,
            decoder=decoder,
            allow_cost=allow_cost,
            progress=reporter.update,
        )
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LIST]
    size = sum(path.stat().st_size for path in files)
    terminal.log(f"wrote {counted(len(files), 'file')}, {size_text(size)}")
    terminal.data(terminal.text(str(folder)))
    return ExitCode.OK
