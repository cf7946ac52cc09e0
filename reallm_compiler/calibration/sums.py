"""The sums over a shard of the text, on disk until those of all shards are added up."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from reallm_compiler.calibration.moments import MatrixSums
from reallm_compiler.errors import CalibrateError
from reallm_compiler.runs.state import load_state, save_state, under
from reallm_compiler.runs.training import SUFFIX


def save_sums(path: Path, sums: Mapping[str, MatrixSums]) -> None:
    """Store the sums of all matrices of a pass.

    Raises:
        CalibrateError: the disk refuses.
    """
    tensors = {
        f"{number} {role}": values.contiguous()
        for number, one in enumerate(sums.values())
        for role, values in one.state().items()
    }
    # A task may be done twice at once: each has a file of its own until it is whole.
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}{SUFFIX}")
    try:
        save_state(own, tensors, {})
        own.replace(path)
    except OSError as error:
        raise CalibrateError(
            f"sums cannot be written: {error}",
            location=str(path),
            hint="free disk space and run the same command again: finished blocks are kept",
        ) from error


def add_sums(path: Path, sums: Mapping[str, MatrixSums]) -> None:
    """Add what `save_sums` has stored of the same matrices.

    Raises:
        CalibrateError: it is gone, or damaged.
    """
    try:
        _, tensors = load_state(path)
    except ValueError as error:
        raise CalibrateError(
            f"sums cannot be read: {error}",
            location=str(path),
            note="with a cluster the output must lie where all nodes see it",
            hint="run the same command again, or start over with `--resume never`",
        ) from error
    for number, one in enumerate(sums.values()):
        one.add(under(f"{number} ", tensors))
