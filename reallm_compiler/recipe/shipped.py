"""The recipes that come with reallm: in the package when installed, else in the repository."""

from __future__ import annotations

import re
from pathlib import Path

BEST = ("reallm-2bit", "reallm-2.5bit", "reallm-3bit", "reallm-4bit")
"""The recipes that lose least at their size, the smallest first; docs/results.md measures it.

They need statistics of the model, which `reallm calibrate` measures.
"""

DATA_FREE = (
    "reallm-2bit-data-free",
    "reallm-3bit-data-free",
    "reallm-4bit-data-free",
    "reallm-4.5bit-data-free",
    "reallm-5bit-data-free",
)
"""Of the recipes that need no statistics those that lose least at their size, likewise."""

FIRST_CHOICE = "reallm-2bit"
"""What a user who knows nothing else should take: a seventh of bfloat16, at little loss."""

CHOICES = "choices"
"""The folder of recipes with candidates, among the others."""

CACHES = "caches"
"""The folder of recipes of keys and values alone, which code no matrix."""

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE.parent / "_recipes", _PACKAGE.parent.parent / "recipes")


def _home() -> Path:
    return next((home for home in _FOLDERS if home.is_dir()), _FOLDERS[-1])


def list_shipped() -> list[str]:
    """The names of all shipped recipes that can be compiled, in alphabetical order."""
    return sorted(path.stem for path in _home().glob("*.yaml"))


def list_choices() -> list[str]:
    """The names of the shipped recipes that `reallm allocate` chooses from, likewise."""
    return sorted(path.stem for path in (_home() / CHOICES).glob("*.yaml"))


def list_caches() -> list[str]:
    """The names of the shipped recipes of keys and values, likewise."""
    return sorted(path.stem for path in (_home() / CACHES).glob("*.yaml"))


def list_all() -> list[str]:
    """The names of all shipped recipes."""
    return [*list_shipped(), *list_choices(), *list_caches()]


def shipped_path(name: str) -> Path | None:
    """The file of a shipped recipe; None if there is no recipe of that name."""
    if name in list_shipped():
        return _home() / f"{name}.yaml"
    for folder, names in ((CHOICES, list_choices()), (CACHES, list_caches())):
        if name in names:
            return _home() / folder / f"{name}.yaml"
    return None


def read_shipped(name: str) -> str:
    """The text of a shipped recipe.

    Raises:
        KeyError: there is no recipe of that name; `list_all` has them all.
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


def measured_kl(name: str) -> tuple[str, str]:
    """The KL divergence in nats that a recipe's head says was measured, and the page that it stands
    on, which says on how much text; both empty if none was.
    """
    found = re.search(r"KL (\d+\.\d+)[^()]*\((.*?)\)", head_comment(read_shipped(name)))
    return (found[1], found[2]) if found else ("", "")
