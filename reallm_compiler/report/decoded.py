"""How far the matrices of two archives are from each other, decoded one at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from reallm_compiler.progress import Progress, progress_callback
from reallm_compiler.reader.archive import open_archive


def measure_distance(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    names: Sequence[str],
    *,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """||A - B|| / ||A|| (Frobenius, in float64) of matrices that both archives have, by name.

    Raises:
        FormatError: an archive is damaged, or costs too much to decode.
        SourceError: a trained decoder is missing.
    """
    advance = progress_callback(progress, "decode", "matrices")
    found = {}
    with (
        open_archive(a, decoder=decoder, allow_cost=allow_cost) as first,
        open_archive(b, decoder=decoder, allow_cost=allow_cost) as second,
    ):
        for done, name in enumerate(names, 1):
            here = first.matrix(name, dtype=torch.float64)
            norm = float(torch.linalg.vector_norm(here))
            here -= second.matrix(name, dtype=torch.float64)
            found[name] = float(torch.linalg.vector_norm(here)) / norm if norm else 0.0
            advance(done, len(names))
    return found
