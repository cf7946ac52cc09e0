"""The one family of errors.

Every mistake that a user can make, and every damage that a file can carry, is raised as a
`ReallmError`. It holds facts for people in five parts, the same everywhere:

code      a kebab-case name of the kind of error, stable, for scripts and documentation
message   what is wrong
location  where: `file:line` and a path in a recipe, or a section and an offset in an archive
note      why it is refused, or what it means
hint      what to do next

This module imports nothing of ours, so that every package may import it.
"""

from __future__ import annotations

from typing import Any, ClassVar


def printable(text: str) -> str:
    """`text` as it can be shown anywhere: what would steer a terminal is written as an escape.

    Escaped is each character that is not printable: control characters, line ends, and those that
    hide text or turn its direction.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class ReallmError(Exception):
    """A mistake or a damage that is reported to the user without a traceback.

    Args:
        message: what is wrong, without a full stop at the end.
        location: where it is wrong, as short as it can be found again.
        note: why this is refused.
        hint: what the reader can do about it.
    """

    code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        location: str | None = None,
        note: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.location = location
        self.note = note
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.location}: " if self.location else ""
        return f"{where}{self.message}"

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        """Note and hint, which Python shows below the message in a traceback."""
        parts = (("note", self.note), ("hint", self.hint))
        return [f"{label}: {text}" for label, text in parts if text]

    def __reduce__(self) -> tuple[Any, ...]:
        # Without this an error with arguments of its own cannot leave a worker process.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[ReallmError], args: tuple[Any, ...], facts: dict[str, Any]) -> ReallmError:
    """An error as it was pickled, whatever arguments its class takes."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(facts)
    return error


class FormatError(ReallmError):
    """A file breaks a rule of SPEC.md.

    Its texts quote the file, so they are made printable: each is one line.

    `rule` is the name of the broken rule as SPEC.md lists it.
    """

    code: ClassVar[str] = "bad-archive"

    def __init__(
        self,
        rule: str,
        message: str,
        *,
        location: str | None = None,
        note: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(
            printable(message),
            location=None if location is None else printable(location),
            note=None if note is None else printable(note),
            hint=None if hint is None else printable(hint),
        )
        self.rule = rule

    def inside(self, file: str) -> FormatError:
        """The same error with the file's name in front of its location."""
        location = f"{file}: {self.location}" if self.location else file
        return type(self)(
            self.rule, self.message, location=location, note=self.note, hint=self.hint
        )
