"""Mistakes that only the command line can see, and the nearest valid word for them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from reallm_compiler.errors import EvaluationError, Problem, ReallmError, RecipeError
from reallm_compiler.hints import did_you_mean, nearest

RECIPE_SUFFIXES = (".yaml", ".yml", ".json")


class CommandLineError(ReallmError):
    """The command line itself is wrong."""

    code: ClassVar[str] = "usage"


class NoArchiveError(ReallmError):
    """A path does not lead to an archive."""

    code: ClassVar[str] = "bad-archive"


class SystemRefusalError(ReallmError):
    """The system refused a file or the network, and no package reported it better."""

    code: ClassVar[str] = "system"


def check_recipe_path(recipe: str) -> None:
    """Refuse a recipe's path that leads nowhere, with the nearest name beside it.

    A name without a suffix or a folder is a shipped recipe's, which the recipe package checks.

    Raises:
        RecipeError: there is no such file.
    """
    file = Path(recipe)
    if file.exists() or (file.suffix not in RECIPE_SUFFIXES and len(file.parts) == 1):
        return
    problem = Problem(
        location=recipe,
        path="",
        message="there is no such recipe file",
        hint=did_you_mean(_recipes_like(file)) or "`reallm recipes list` names the shipped ones",
    )
    raise RecipeError([problem])


def _recipes_like(file: Path) -> list[str]:
    if not file.parent.is_dir():
        return []
    beside = [child.name for child in file.parent.iterdir() if child.suffix in RECIPE_SUFFIXES]
    return [str(file.parent / name) for name in nearest(file.name, sorted(beside))]


def check_text_path(path: str) -> None:
    """Refuse a text's path that leads nowhere before anything slow is loaded.

    Raises:
        EvaluationError: there is no such file.
    """
    file = Path(path)
    if file.exists():
        return
    beside = sorted(child.name for child in file.parent.iterdir()) if file.parent.is_dir() else []
    alike = [str(file.parent / name) for name in nearest(file.name, beside)]
    raise EvaluationError("there is no such text file", location=path, hint=did_you_mean(alike))


def check_archive_path(path: str) -> None:
    """Refuse a path that leads to no file, with the nearest name beside it.

    Raises:
        NoArchiveError: there is no such file, or it is a folder.
    """
    file = Path(path)
    if file.is_file():
        return
    if file.is_dir():
        inside = sorted(child.name for child in file.glob("*.reallm"))
        raise NoArchiveError(
            "an archive is one file, and this is a folder",
            location=path,
            hint=did_you_mean([str(file / name) for name in inside[:3]])
            or "give the `.reallm` file that `reallm compile` wrote",
        )
    if not file.parent.is_dir():
        raise NoArchiveError(
            "there is no such archive", location=path, note=f"there is no folder `{file.parent}`"
        )
    names = sorted(child.name for child in file.parent.iterdir() if child.is_file())
    alike = [name for name in nearest(file.name, names) if name.endswith(".reallm")]
    raise NoArchiveError(
        "there is no such archive",
        location=path,
        hint=did_you_mean([str(file.parent / name) for name in alike])
        or "`reallm compile RECIPE --model MODEL -o FILE.reallm` makes one",
    )
