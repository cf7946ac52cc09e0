"""`reallm verify`: every digest, every rule, and what the archive means."""

from __future__ import annotations

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import check_archive_path
from reallm_cli.options import cost_option
from reallm_cli.progress import BytesReporter
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import counted
from reallm_formats import Archive, FormatError


@click.command(
    "verify",
    cls=ExampleCommand,
    short_help="Check every part of an archive.",
    examples=[
        ("reallm verify model.reallm", "read the whole file and check every part of it"),
        ("reallm verify model.reallm --quick", "only that the file is the one that was written"),
        ("reallm verify model.reallm --json", "the same for scripts; the exit code is 1 on damage"),
    ],
)
@click.argument("archive", metavar="ARCHIVE")
@click.option(
    "--quick", is_flag=True, help="Check digests and structure alone, not what they mean."
)
@cost_option
@click.option("--json", "as_json", is_flag=True, help="Print `ok` and `damages` as JSON.")
@click.pass_obj
def verify(terminal: Terminal, archive: str, quick: bool, allow_cost: bool, as_json: bool) -> int:
    """Check an archive: every digest, every rule of the format, and that it can be decoded.

    Plans must fit their sections, names their tensors; orders must be permutations and tables
    finite; decoding must cost no more than a file of this length may ask for.

    Prints `intact`, or one line per damaged range.
    """
    from reallm_compiler.reader.verify import verify as find_damage

    check_archive_path(archive)
    with BytesReporter(terminal, "verify") as reporter:
        damages = find_damage(archive, quick=quick, allow_cost=allow_cost, progress=reporter.update)
    if as_json:
        terminal.json(
            {
                "ok": not damages,
                "damages": [
                    {
                        "rule": damage.rule,
                        "location": damage.location,
                        "message": damage.message,
                    }
                    for damage in damages
                ],
            }
        )
        return ExitCode.DAMAGED if damages else ExitCode.OK
    if not damages:
        with Archive.open(archive) as opened:
            sections, size = len(opened.sections), opened.file_bytes
        terminal.data(f"intact: {counted(sections, 'section')}, {counted(size, 'byte')}")
        return ExitCode.OK
    for damage in damages:
        terminal.data(terminal.text(f"{damage.location}: {damage.message} ({damage.rule})"))
    terminal.log(f"not intact: {counted(len(damages), 'damaged range')} in `{archive}`")
    terminal.log()
    terminal.log(f"hint: {_next_step(archive, {damage.rule for damage in damages})}")
    return ExitCode.DAMAGED


def _next_step(path: str, rules: set[str]) -> str:
    """What to do: the broken structure's own hint, as a text file is not a cut archive."""
    if rules == {"P6"}:
        return "if you trust this file, `--allow-cost` lets decoding cost so much"
    if all(rule.startswith("P") for rule in rules):
        return "its digests are right, so it was written like this: do not use it"
    try:
        Archive.open(path).close()
    except FormatError as error:
        if error.hint is not None:
            return error.hint
    return "copy the file again from where it came, or compile it again"
