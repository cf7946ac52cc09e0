"""The exit codes, by name: a script can distinguish a wrong recipe from a full disk.

`docs/cli.md` lists the same table, and a test compares the two. Codes are never reused.
"""

from __future__ import annotations

from enum import IntEnum

from reallm_compiler.errors import ReallmError


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    DAMAGED = 1
    USAGE = 2
    BAD_RECIPE = 3
    BAD_SOURCE = 4
    BAD_ARCHIVE = 5
    BAD_OUTPUT = 6
    CANNOT_COMPILE = 7
    CANNOT_RESUME = 8
    BAD_MATRIX = 9
    CANNOT_EVALUATE = 10
    SYSTEM = 11
    BAD_ADAPTER = 12
    CANNOT_FINETUNE = 13
    CANNOT_CALIBRATE = 14
    CANNOT_EXPORT = 15
    CANNOT_ALLOCATE = 16
    DIFFERENT = 17
    BUG = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    ExitCode.OK: "the command did what was asked",
    ExitCode.DAMAGED: "`verify` found damage",
    ExitCode.USAGE: "the command line itself is wrong",
    ExitCode.BAD_RECIPE: "the recipe is wrong, by itself or for this model",
    ExitCode.BAD_SOURCE: "the model cannot be read, or its content contradicts its headers",
    ExitCode.BAD_ARCHIVE: "the archive cannot be read, or breaks a rule of its format",
    ExitCode.BAD_OUTPUT: "the output exists already or cannot be written",
    ExitCode.CANNOT_COMPILE: "memory, disk, device or a worker does not suffice",
    ExitCode.CANNOT_RESUME: "what an interrupted compile left does not fit this one",
    ExitCode.BAD_MATRIX: "a matrix cannot be encoded or decoded, such as one with NaN",
    ExitCode.CANNOT_EVALUATE: "the model cannot be measured: an unfit text, a wrong window",
    ExitCode.SYSTEM: "the system refused a file or the network: permission, disk, connection",
    ExitCode.BAD_ADAPTER: "an adapter belongs to another base, or does not fit it",
    ExitCode.CANNOT_FINETUNE: "the model cannot be tuned: an unfit text, a loss that is not finite",
    ExitCode.CANNOT_CALIBRATE: "statistics cannot be measured, or are of another model",
    ExitCode.CANNOT_EXPORT: "a format cannot hold the model exactly, or it cannot be served",
    ExitCode.CANNOT_ALLOCATE: "no choice of candidates fits, or there is nothing to choose from",
    ExitCode.DIFFERENT: "`diff` found a difference",
    ExitCode.BUG: "a bug in reallm",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C or a signal",
    ExitCode.BROKEN_PIPE: "the program that read our output went away",
}
"""What each code means, as in `docs/cli.md`."""

_BY_ERROR = {
    "usage": ExitCode.USAGE,
    "bad-recipe": ExitCode.BAD_RECIPE,
    "bad-kind": ExitCode.BAD_RECIPE,
    "bad-source": ExitCode.BAD_SOURCE,
    "bad-archive": ExitCode.BAD_ARCHIVE,
    "bad-output": ExitCode.BAD_OUTPUT,
    "cannot-compile": ExitCode.CANNOT_COMPILE,
    "cannot-resume": ExitCode.CANNOT_RESUME,
    "interrupted": ExitCode.INTERRUPTED,
    "bad-matrix": ExitCode.BAD_MATRIX,
    "cannot-evaluate": ExitCode.CANNOT_EVALUATE,
    "system": ExitCode.SYSTEM,
    "bad-adapter": ExitCode.BAD_ADAPTER,
    "cannot-finetune": ExitCode.CANNOT_FINETUNE,
    "cannot-calibrate": ExitCode.CANNOT_CALIBRATE,
    "cannot-export": ExitCode.CANNOT_EXPORT,
    "cannot-allocate": ExitCode.CANNOT_ALLOCATE,
}


def exit_code_of(error: ReallmError) -> ExitCode:
    """The exit code of an error, by its `code`; a kind that has none here is a bug."""
    return _BY_ERROR.get(error.code, ExitCode.BUG)
