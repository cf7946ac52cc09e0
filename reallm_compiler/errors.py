"""The errors of the compiler: one class for each thing that can be wrong.

Lower layers raise facts; only the command line gives them colour and exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from reallm_formats.errors import FormatError, ReallmError

__all__ = [
    "AdapterError",
    "AllocateError",
    "CalibrateError",
    "CodecError",
    "CompileError",
    "EvaluationError",
    "ExportError",
    "FinetuneError",
    "FormatError",
    "OutputError",
    "Problem",
    "ReallmError",
    "RecipeError",
    "RegistryError",
    "ResumeError",
    "SourceError",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong in a recipe.

    Attributes:
        location: `file:line:column`, or the file alone where no line can be named.
        path: the path in the document, such as `rules[2].set.residual.rank`.
        message: what is wrong there.
        hint: the nearest valid word, or what to write instead.
    """

    location: str
    path: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        prefix = f"{self.location}: {self.path}: " if self.path else f"{self.location}: "
        tail = f" ({self.hint})" if self.hint else ""
        return f"{prefix}{self.message}{tail}"


class RecipeError(ReallmError):
    """A recipe is wrong; `problems` holds everything found, in the order of the document."""

    code: ClassVar[str] = "bad-recipe"

    def __init__(self, problems: Sequence[Problem], *, note: str | None = None) -> None:
        self.problems = tuple(problems)
        many = f"{len(self.problems)} problems" if len(self.problems) != 1 else "1 problem"
        super().__init__(f"the recipe has {many}", note=note)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class RegistryError(ReallmError):
    """A kind of a stage is registered wrongly: without a size law or codec, or twice."""

    code: ClassVar[str] = "bad-kind"


class SourceError(ReallmError):
    """A checkpoint cannot be read, or its content contradicts its headers."""

    code: ClassVar[str] = "bad-source"


class CodecError(ReallmError):
    """A matrix cannot be encoded or decoded: a NaN, or sections that break a size law."""

    code: ClassVar[str] = "bad-matrix"


class CompileError(ReallmError):
    """A compile cannot start or go on: memory, disk, device, a lost worker."""

    code: ClassVar[str] = "cannot-compile"


class ResumeError(CompileError):
    """What an interrupted compile left behind does not fit this one."""

    code: ClassVar[str] = "cannot-resume"


class OutputError(ReallmError):
    """An output exists already or cannot be written."""

    code: ClassVar[str] = "bad-output"


class AdapterError(ReallmError):
    """An adapter does not fit: another base, other matrices, or a layout that is not known."""

    code: ClassVar[str] = "bad-adapter"


class FinetuneError(ReallmError):
    """A model cannot be tuned: an unfit text, nothing to tune, a loss that is not finite."""

    code: ClassVar[str] = "cannot-finetune"


class AllocateError(ReallmError):
    """Nothing can be chosen: no target or no candidates are given, or no choice fits."""

    code: ClassVar[str] = "cannot-allocate"


class CalibrateError(ReallmError):
    """A model cannot be measured, or statistics do not fit: another model, shape or form."""

    code: ClassVar[str] = "cannot-calibrate"


class EvaluationError(ReallmError):
    """A model cannot be measured: an unfit text, a wrong window, a loss that is not finite."""

    code: ClassVar[str] = "cannot-evaluate"


class ExportError(ReallmError):
    """A model cannot be written in a format, or served: its plan does not fit, a library lacks."""

    code: ClassVar[str] = "cannot-export"
