"""`reallm reconstruct`: an archive as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import check_archive_path
from reallm_cli.numbers import counted, size_text
from reallm_cli.terminal import Terminal


@click.command(
    "reconstruct",
    cls=ExampleCommand,
    short_help="Turn an archive back into a model folder.",
    examples=[
        (
            "reallm reconstruct model.reallm -o model-back",
            "write safetensors, config and tokenizer into the folder `model-back`",
        ),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--force", is_flag=True, help="Write into a folder that exists already.")
@click.pass_obj
def reconstruct(terminal: Terminal, archive: str, output: str, force: bool) -> int:
    """Turn an archive back into a plain Hugging Face folder.

    The weights are decoded to the model's own type; any program that reads safetensors can load
    the folder. Prints the folder's path.
    """
    check_archive_path(archive)
    from reallm_compiler.reader.reconstruct import reconstruct as write_folder

    folder = Path(write_folder(archive, output, force=force))
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    terminal.say(f"wrote {counted(len(files), 'file')}, {size_text(size)}")
    terminal.data(terminal.text(str(folder)))
    return ExitCode.OK
