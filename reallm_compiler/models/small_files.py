"""The small files of a model (config, tokenizer) into a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reallm_compiler.checkpoint.carried import is_carried
from reallm_compiler.errors import FormatError


def write_files(files: Iterable[tuple[str, bytes]], folder: Path) -> None:
    """Write the small files of a model (config, tokenizer), as (path, content), into `folder`.

    Raises:
        FormatError: a path would leave the folder, or the file is none that a compile embeds,
            such as weights or code under another name.
    """
    root = folder.resolve()
    for name, data in files:
        if not is_carried(name):
            raise FormatError(
                "P7",
                f"`{name}` is not a config or tokenizer file, so it is not written",
                location=name,
            )
        target = (root / name).resolve()
        if root not in target.parents:
            raise FormatError(
                "P7", f"the embedded file `{name}` would leave its folder", location=name
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
