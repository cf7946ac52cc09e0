"""The command line as a function.

`main` parses, runs one command and returns its exit code; it never ends the process, so tests and
other programs can call it. `run` is the console script: it only hands the code to the system.
Errors become a message on stderr and an exit code here, and nowhere else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from reallm_cli.commands.adapter import adapter
from reallm_cli.commands.allocate import allocate_command
from reallm_cli.commands.budget import budget
from reallm_cli.commands.calibrate import calibrate_command
from reallm_cli.commands.compile import compile_command
from reallm_cli.commands.decoder import decoder
from reallm_cli.commands.demo import demo
from reallm_cli.commands.diff import diff_command
from reallm_cli.commands.eval import eval_command
from reallm_cli.commands.export import export_command
from reallm_cli.commands.finetune import finetune_command
from reallm_cli.commands.inspect import inspect
from reallm_cli.commands.recipes import recipes
from reallm_cli.commands.reconstruct import reconstruct
from reallm_cli.commands.report import report_command
from reallm_cli.commands.serve import serve_command
from reallm_cli.commands.survey import survey_command
from reallm_cli.commands.verify import verify
from reallm_cli.diagnostics import from_click, show_bug, show_error
from reallm_cli.exit_codes import ExitCode, exit_code_of
from reallm_cli.help import ExampleGroup
from reallm_cli.mistakes import SystemRefusalError
from reallm_cli.terminal import Terminal
from reallm_compiler.distribution import VERSION
from reallm_compiler.errors import CompileError, ReallmError
from reallm_compiler.system import check_system

PROGRAM = "reallm"
COMPLETION_VARIABLE = "_REALLM_COMPLETE"
TRACEBACK_VARIABLE = "REALLM_TRACEBACK"


@click.group(
    cls=ExampleGroup,
    invoke_without_command=True,
    examples=[
        ("reallm demo", "compile, verify and measure the model that comes with reallm"),
        (
            "reallm budget reallm-2bit --model path/to/model",
            "the exact size, before any work is done",
        ),
        (
            "reallm calibrate path/to/model --text text.txt -o model.stats",
            "measure once what errors cost",
        ),
        (
            "reallm compile reallm-2bit --model path/to/model --stats model.stats -o model.reallm",
            "make the archive",
        ),
    ],
)
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.option(
    "--traceback", is_flag=True, help="Show the traceback of a bug (or set REALLM_TRACEBACK=1)."
)
@click.pass_context
def cli(context: click.Context, version: bool, traceback: bool) -> int:
    """Compress a language model to an exact number of bytes, and get it back.

    A recipe says how each matrix is stored. `budget` shows the size to the byte, `compile` makes
    one verified `.reallm` file, `reconstruct` turns it back into a plain model folder.
    """
    terminal: Terminal = context.obj
    terminal.traceback = traceback or os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")
    if version:
        terminal.data(f"{PROGRAM} {VERSION}")
        context.exit(ExitCode.OK)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), file=terminal.out.file)
    return ExitCode.OK


for command in (
    compile_command,
    budget,
    inspect,
    verify,
    calibrate_command,
    allocate_command,
    reconstruct,
    export_command,
    serve_command,
    decoder,
    eval_command,
    report_command,
    diff_command,
    survey_command,
    finetune_command,
    adapter,
    recipes,
    demo,
):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the words after `reallm`; those of the process when None.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    terminal = Terminal()
    try:
        code = _invoke(args, terminal)
        terminal.out.file.flush()
    except BrokenPipeError:
        _forget_stdout()
        return int(ExitCode.BROKEN_PIPE)
    return int(code)


def run() -> None:
    """Entry of the console script."""
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        sys.exit(shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, instruction))
    sys.exit(main())


def _invoke(args: list[str], terminal: Terminal) -> int:
    try:
        check_system()
        with cli.make_context(PROGRAM, args, obj=terminal) as context:
            code = cli.invoke(context)
            return code if isinstance(code, int) else ExitCode.OK
    except click.exceptions.Exit as done:  # `--help` and `--version` end this way
        return done.exit_code
    except click.ClickException as error:
        mistake = from_click(error)
        show_error(terminal, mistake)
        return exit_code_of(mistake)
    except ReallmError as error:
        show_error(terminal, error)
        return exit_code_of(error)
    except (KeyboardInterrupt, click.Abort):
        terminal.log()
        terminal.log("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except MemoryError:
        shortage = CompileError(
            "memory ran out", hint="try fewer workers, or a machine with more memory"
        )
        show_error(terminal, shortage)
        return exit_code_of(shortage)
    except OSError as error:
        refusal = _refusal(error)
        if refusal is None:
            show_bug(terminal, error)
            return ExitCode.BUG
        show_error(terminal, refusal)
        return exit_code_of(refusal)
    # The outermost boundary: whatever comes here is a bug, and is reported as one.
    except Exception as error:
        show_bug(terminal, error)
        return ExitCode.BUG


def _refusal(error: OSError) -> SystemRefusalError | None:
    """The file that the system refused, or None where the error names none."""
    if error.strerror is None:
        return None
    reason = error.strerror[:1].lower() + error.strerror[1:]
    path = error.filename if isinstance(error.filename, str) else None
    return SystemRefusalError(f"the system refused: {reason}", location=path)


def _forget_stdout() -> None:
    """Point stdout nowhere, so that the interpreter's last flush meets no closed pipe."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # stdout was replaced by something that is no file
        return
