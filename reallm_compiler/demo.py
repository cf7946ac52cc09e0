"""Where the bundled model is: in the package when installed, else in the repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reallm_compiler.errors import SourceError

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "_demo", _PACKAGE.parent / "demo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """The bundled model and the text that it never saw.

    Attributes:
        model: folder of the checkpoint.
        heldout: UTF-8 text from another seed than the training text.
    """

    model: Path
    heldout: Path


def find_demo() -> Demo:
    """The bundled model.

    Raises:
        SourceError: this installation lacks it.
    """
    for home in _FOLDERS:
        found = Demo(model=home / "model", heldout=home / "heldout.txt")
        if (found.model / "model.safetensors").is_file() and found.heldout.is_file():
            return found
    raise SourceError(
        "the bundled model is not here",
        location=str(_FOLDERS[-1]),
        note="it is part of the wheel and of the repository",
        hint="install reallm again, or train it with `python demo/train.py` in the repository",
    )
