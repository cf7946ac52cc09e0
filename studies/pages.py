"""Rows that studies keep, and pages that several print together: each replaces its own part."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "<!-- printed by studies/{}.py -->"
BY_HAND = "<!-- written by hand -->"

LINEAR_ONLY = {"role": ["embedding", "head"], "keep": "source", "optional": True}
"""A rule for comparisons with papers and tools that leave embeddings and heads as they are."""


def keep_row(row: Mapping[str, Any], inputs: Mapping[str, str], path: Path | None) -> None:
    """Print a row that was measured, and add it to the file of those that are kept, if any.

    Args:
        row: what was measured.
        inputs: by what: the model's name, and digests of weights, texts and statistics.
        path: the file.
    """
    line = json.dumps({**row, "inputs": dict(inputs)})
    print(line, file=sys.stderr, flush=True)
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_rows(path: Path | None, inputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows that an earlier run kept, if any, of these inputs.

    A last line that is half a row is cut off, in the file too, so that the next row begins a line.

    Args:
        path: the file.
        inputs: as of `keep_row`. A row is left out that was measured by another one of them, or
            says none; one that it was measured without does not matter.
    """
    rows: list[dict[str, Any]] = []
    if path is None or not path.exists():
        return rows
    good = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(good)
            break
        row = json.loads(line)
        by = row.pop("inputs", None)
        if by is not None and all(
            by.get(name, digest) == digest for name, digest in inputs.items()
        ):
            rows.append(row)
        good += len(line)
    return rows


def digest_of(*parts: object) -> str:
    """SHA-256, in hex, of texts, numbers and files; a path stands for its content."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(hashlib.sha256(repr(part).encode()).digest())
    return digest.hexdigest()


def weights_digest(folder: Path) -> str:
    """Digest of a checkpoint's weights."""
    return digest_of(*sorted(folder.glob("*.safetensors")))


def write_part(path: Path, script: str, text: str) -> None:
    """Put `text` where the part of `script` stands in the page, or at the end of it.

    A part begins with a line that names its script and ends where the next one begins, or one
    that is written by hand.
    """
    mark = MARK.format(script)
    start, end = MARK.split("{}")
    parts: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if line == BY_HAND or (line.startswith(start) and line.endswith(end)):
            parts.append([])
        parts[-1].append(line)
    new = [mark, "", *text.strip().splitlines(), ""]
    indices = [index for index, part in enumerate(parts) if part[:1] == [mark]]
    for index in indices[:1]:
        parts[index] = new
    if not indices:
        parts += [[""], new]
    page = "\n".join(line for part in parts for line in part)
    path.write_text(page.strip() + "\n", encoding="utf-8")
