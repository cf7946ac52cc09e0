"""`reallm decoder`: a trained decoder taken out of an archive, for other checkpoints to use."""

from __future__ import annotations

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import check_archive_path
from reallm_cli.progress import BytesReporter
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import counted


@click.command(
    "decoder",
    cls=ExampleCommand,
    short_help="Extract a trained decoder from an archive.",
    examples=[
        (
            "reallm decoder model.reallm q -o q-decoder.reallm",
            "the decoder of the share group `q`, in a file of its own",
        ),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.argument("owner", metavar="GROUP_OR_MATRIX")
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.pass_obj
def decoder(terminal: Terminal, archive: str, owner: str, output: str, force: bool) -> int:
    """Take the trained decoder of a share group, or of one matrix, out of an archive.

    A recipe that names the file, `autoencoder: {kind: hnerv, decoder: FILE}`, uses it as it is for
    another checkpoint and stores latents alone. Archives made so need the file to be read: beside
    them, or named with `--decoder`.
    Prints the file's path.
    """
    check_archive_path(archive)
    from reallm_compiler.reader.decoder import extract_decoder

    with BytesReporter(terminal, "decoder") as reporter:
        path = extract_decoder(archive, owner, output, force=force, progress=reporter.update)
    terminal.log(f"wrote {counted(path.stat().st_size, 'byte')}")
    terminal.data(terminal.text(str(path)))
    return ExitCode.OK
