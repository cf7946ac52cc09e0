"""The recipes that come with reallm: in the package when installed, else in the repository."""

from __future__ import annotations

from pathlib import Path

BEST = (
    "reallm-2bit-lean",
    "reallm-3bit-lean",
    "reallm-4bit-lean",
    "reallm-4.5bit-lean",
    "reallm-5bit-lean",
)
"""The recipes that lose least at their size, the smallest first; docs/results.md measures it."""

FIRST_CHOICE = "reallm-3bit-lean"
"""What a user who knows nothing else should take: a fifth of bfloat16, at little loss."""

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE.parent / "_recipes", _PACKAGE.parent.parent / "recipes")


def _home() -> Path:
    return next((home for home in _FOLDERS if home.is_dir()), _FOLDERS[-1])


def list_shipped() -> list[str]:
    """The names of all shipped recipes, in alphabetical order."""
    return sorted(path.stem for path in _home().glob("*.yaml"))


def shipped_path(name: str) -> Path | None:
    """The file of a shipped recipe; None if there is no recipe of that name."""
    return _home() / f"{name}.yaml" if name in list_shipped() else None


def read_shipped(name: str) -> str:
    """The text of a shipped recipe.

    Raises:
        KeyError: there is no recipe of that name; `list_shipped` has them all.
    """
    path = shipped_path(name)
    if path is None:
        raise KeyError(name)
    return path.read_text(encoding="utf-8")


def head_comment(text: str) -> str:
    """The comment at the head of a recipe, without its `#`."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(lines).strip()
