"""`reallm adapter`: adapters to and from the layout of the peft library."""

from __future__ import annotations

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand, ExampleGroup
from reallm_cli.libraries import quiet_libraries
from reallm_cli.mistakes import check_archive_path
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import counted


@click.group(
    "adapter",
    cls=ExampleGroup,
    short_help="Exchange adapters with peft.",
    examples=[
        (
            "reallm adapter export model.reallm --adapter tuned.adapter -o peft-folder",
            "write an adapter in peft's layout",
        ),
        (
            "reallm adapter import model.reallm peft-folder -o tuned.adapter",
            "import an adapter that peft has trained",
        ),
    ],
)
def adapter() -> None:
    """Exchange adapters with the peft library.

    peft works on the coded part alone, which `reallm reconstruct --coded-only` writes: there its
    factors are added, while those of an adapter replace the archive's own.
    """


@adapter.command(
    "export",
    cls=ExampleCommand,
    short_help="Write an adapter as a peft folder.",
    examples=[
        (
            "reallm adapter export model.reallm --adapter tuned.adapter -o peft-folder",
            "LoRA factors, and DoRA gains where there are some",
        ),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.option(
    "--adapter", "path", metavar="FILE", help="The adapter; without it the archive's own."
)
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--base", default="", metavar="DIR", help="The base folder that peft is to load.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace a folder that reallm wrote and that nobody changed; any other is refused.",
)
@click.pass_obj
def export(
    terminal: Terminal, archive: str, path: str | None, output: str, base: str, force: bool
) -> int:
    """Write an adapter, or the archive's own factors, as a folder that peft loads."""
    check_archive_path(archive)
    if path is not None:
        check_archive_path(path)
    from reallm_compiler.finetune.peft_layout import export_peft

    quiet_libraries()
    folder = export_peft(archive, output, adapter=path, base_folder=base, force=force)
    terminal.data(terminal.text(str(folder)))
    return ExitCode.OK


@adapter.command(
    "import",
    cls=ExampleCommand,
    short_help="Make an adapter from a peft folder.",
    examples=[
        (
            "reallm adapter import model.reallm peft-folder -o tuned.adapter --factors int8",
            "with factors stored in 8 bits",
        ),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.argument("folder", metavar="DIR")
@click.option("-o", "--output", required=True, metavar="FILE", help="The adapter to write.")
@click.option(
    "--factors",
    type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
    help="Stored type of the factors.  [default: that of the archive]",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.pass_obj
def import_(
    terminal: Terminal, archive: str, folder: str, output: str, factors: str | None, force: bool
) -> int:
    """Make an adapter of a folder that peft wrote over the archive's coded part."""
    check_archive_path(archive)
    from reallm_compiler.finetune.peft_layout import import_peft

    quiet_libraries()
    size, error = import_peft(archive, folder, output, factors=factors, force=force)
    terminal.data(f"rounding of the factors: at most {100 * error:.3f} %")
    terminal.log(f"wrote `{output}`: {counted(size, 'byte')}")
    return ExitCode.OK
