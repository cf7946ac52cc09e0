"""Sections that were coded before and kept: by what they are known, and whether they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reallm_compiler.codecs import to_bytes
from reallm_compiler.codecs.sections import check_sections, tensor_bytes
from reallm_compiler.errors import CodecError
from reallm_compiler.execute.statistics import original_name
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.runs.identity import machine_fields
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.tensors import TensorSpec


def matrix_identity(
    matrix: PlannedMatrix,
    spec: TensorSpec,
    source: Mapping[str, str],
    statistics: str | None,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """What decides how a matrix is coded, as plain data; what its share group has in common apart.

    Args:
        matrix: what is coded, and how.
        spec: its tensor.
        source: SHA-256 of the stored bytes that it is made of, by tensor, in hex.
        statistics: digest of the file of statistics, in hex; None without one.
        seed: the recipe's.
        device: where the work runs.
    """
    needed = statistics is not None and matrix.plan.needs_statistics
    return {
        **machine_fields(device),
        "method": matrix.layout.method,
        "in group": matrix.plan.share is not None,
        "shape": matrix.shape,
        "dtype": matrix.dtype,
        "weights": [dict(source), matrix.transposed, repr(spec.origin)],
        "statistics": [statistics, original_name(matrix, spec)] if needed else None,
        "seed": seed_for(seed, matrix.name),
    }


def fits(sections: Mapping[str, torch.Tensor], specs: Sequence[SectionSpec]) -> bool:
    """Whether sections, wherever they come from, are those of a size law, with values it allows."""
    try:
        check_sections(sections, specs)
    except CodecError:
        return False
    return all(
        spec.values.problem(to_bytes(sections[spec.role], spec), spec.dtype, spec.shape) is None
        for spec in specs
    )


def sections_digest(sections: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over section tensors by role, in hex."""
    digest = hashlib.sha256()
    for role, data in sorted(sections.items()):
        digest.update(f"{role} {data.dtype} {list(data.shape)} ".encode())
        digest.update(tensor_bytes(data))
    return digest.hexdigest()
