"""Help texts: every command shows examples, and a mistyped command its nearest name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from reallm_cli.mistakes import CommandLineError
from reallm_compiler.hints import did_you_mean, nearest

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Example = tuple[str, str]
"""What is typed, and what it does."""


class ExampleCommand(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **kwargs: Any) -> None:  # noqa: ANN401
        kwargs.setdefault("context_settings", CONTEXT_SETTINGS)
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples after the options."""
        write_examples(self.examples, formatter)


class ExampleGroup(click.Group):
    """A group of commands with examples, that knows the nearest name of a mistyped command."""

    command_class = ExampleCommand
    group_class = type

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **kwargs: Any) -> None:  # noqa: ANN401
        kwargs.setdefault("context_settings", CONTEXT_SETTINGS)
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of their use, not of the alphabet."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with our words for an unknown command."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise CommandLineError(
                f"there is no command `{name}`",
                location=f"`{ctx.command_path}`",
                hint=did_you_mean(nearest(name, self.commands))
                or f"`{ctx.command_path} --help` lists the commands",
            )
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the epilog."""
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


def write_examples(examples: Sequence[Example], formatter: click.HelpFormatter) -> None:
    """A section with each example on a line of its own, what it does below."""
    if not examples:
        return
    with formatter.section("Examples"):
        for index, (typed, meaning) in enumerate(examples):
            if index:
                formatter.write_paragraph()
            indent = " " * formatter.current_indent
            formatter.write(f"{indent}{typed}\n")
            formatter.write(f"{indent}  {meaning}\n")
