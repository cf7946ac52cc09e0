"""`reallm inspect --heatmap`: one matrix of an archive beside the original, as a picture."""

from __future__ import annotations

from reallm_cli.exit_codes import ExitCode
from reallm_cli.mistakes import CommandLineError, check_archive_path
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import error_text


def show_heatmap(
    terminal: Terminal,
    archive: str,
    name: str,
    output: str | None,
    model: str | None,
    decoder: str | None,
    allow_cost: bool,
    *,
    alone: bool,
) -> int:
    """Draw one matrix; its file's path is the data."""
    if not alone:
        raise CommandLineError(
            "`--heatmap NAME` draws one matrix and shows nothing else",
            location="`reallm inspect`",
            hint="leave out `--json` and the second name",
        )
    if output is None or model is None:
        raise CommandLineError(
            f"`--heatmap` needs {'`-o FILE`' if output is None else '`--model MODEL`'}",
            location="`reallm inspect`",
            note=None if output is None else "an archive does not hold the original weights",
            hint="give the checkpoint that the archive was made of as `--model`"
            if output is not None
            else None,
        )
    check_archive_path(archive)
    from reallm_compiler.evaluate.heatmap import heatmap

    drawn = heatmap(archive, name, output, model=model, decoder=decoder, allow_cost=allow_cost)
    error = error_text(drawn.relative_error)
    if drawn.same_model:
        terminal.log(f"error {error}, as measured when the archive was made")
    else:
        terminal.log(
            f"warning: the error here is {error}, and {error_text(drawn.stored_error)} when the "
            f"archive was made: `{model}` is not the model that it was made of"
        )
    terminal.data(terminal.text(str(drawn.path)))
    return ExitCode.OK
