"""A `ReallmError` as text for people: what is wrong, where, why, what to do next.

    error: there is no such archive
      at: out/modell.reallm
      note: ...

    hint: did you mean `out/model.reallm`?

A recipe's error lists every problem, each with its line in the file and its path in the
document. Styles repeat what the text says: nothing depends on colour.
"""

from __future__ import annotations

import traceback

import click
from rich.text import Text

from reallm_cli.mistakes import CommandLineError
from reallm_cli.terminal import Terminal, escape
from reallm_compiler.errors import Problem, ReallmError, RecipeError
from reallm_compiler.hints import did_you_mean

_ERROR = "bold red"
_LOCATION = "cyan"
_HINT = "green"


def render_error(error: ReallmError, *, encoding: str = "utf-8") -> Text:
    """The diagnostic of an error, without a line end after its last line."""
    lines = [Text.assemble(("error", _ERROR), ": ", _safe(error.message, encoding))]
    if isinstance(error, RecipeError):
        for problem in error.problems:
            lines += [Text(), *_problem(problem, encoding)]
    if error.location:
        lines.append(_part("  at", error.location, encoding, style=_LOCATION))
    if error.note:
        if isinstance(error, RecipeError):
            lines.append(Text())
        lines.append(_part("  note", error.note, encoding))
    if error.hint:
        lines += [Text(), _part("hint", error.hint, encoding, label_style=_HINT)]
    return Text("\n").join(lines)


def _problem(problem: Problem, encoding: str) -> list[Text]:
    """One problem: its location, what is wrong, and the nearest valid name."""
    location = Text("  ").append(_safe(problem.location, encoding), _LOCATION)
    if problem.path:
        location.append(f"  {_safe(problem.path, encoding)}")
    lines = [location, Text("    ").append(_indented(problem.message, 4, encoding))]
    if problem.hint:
        lines.append(_part("    hint", problem.hint, encoding, label_style=_HINT))
    return lines


def _part(
    label: str, text: str, encoding: str, *, style: str = "", label_style: str = "bold"
) -> Text:
    indent = len(label) - len(label.lstrip())
    line = Text(" " * indent).append(label.lstrip(), label_style).append(": ")
    return line.append(_indented(text, indent + 2, encoding), style)


def _indented(text: str, columns: int, encoding: str) -> str:
    return _safe(text, encoding).replace("\n", "\n" + " " * columns)


def _safe(text: str, encoding: str) -> str:
    return escape(text, encoding)


def show_error(terminal: Terminal, error: ReallmError) -> None:
    """Print the diagnostic on stderr."""
    terminal.log(render_error(error, encoding=terminal.err.encoding))


def show_bug(terminal: Terminal, error: BaseException) -> None:
    """Report an unexpected error as a bug, with its traceback when asked for."""
    if terminal.traceback:
        shown = "".join(traceback.format_exception(error)).rstrip()
        terminal.log(escape(shown, terminal.err.encoding))
        terminal.log()
    summary = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    lines = [
        Text.assemble(("error", _ERROR), ": this is a bug in reallm, and not a mistake of yours"),
        _part("  what", summary, terminal.err.encoding),
    ]
    if not terminal.traceback:
        lines += [
            Text(),
            Text.assemble(
                ("hint", _HINT),
                ": run it again as `reallm --traceback ...` and report the text that it prints",
            ),
        ]
    terminal.log(Text("\n").join(lines))


def from_click(error: click.ClickException) -> CommandLineError:
    """A mistake that click found, in our words."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "reallm"
    hint: str | None = f"`{command} --help` shows how to use it"
    if isinstance(error, click.NoSuchOption):
        message = f"there is no option `{error.option_name}`"
        hint = did_you_mean(sorted(error.possibilities or [])) or hint
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        message = f"missing {_param(error.param)}"
    elif isinstance(error, click.BadParameter) and error.param is not None:
        message = f"{_param(error.param)}: {_plain(error.message)}"
    else:
        message = _plain(error.format_message())
    return CommandLineError(message, location=f"`{command}`", hint=hint)


def _param(param: click.Parameter) -> str:
    if isinstance(param, click.Argument):
        return f"argument `{param.make_metavar(_NO_CONTEXT)}`"
    return f"option `{max(param.opts, key=len)}`"


_NO_CONTEXT = click.Context(click.Command("reallm"))


def _plain(message: str) -> str:
    """Click's sentence in our form: lower case, back-ticks, no full stop."""
    text = message.strip().removesuffix(".").replace("'", "`")
    return text[:1].lower() + text[1:]
