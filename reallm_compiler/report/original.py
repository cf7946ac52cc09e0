"""Archives beside the model that they were made of: norms, spectra and distributions.

Matrices are read one at a time and let go. All of them are read once for their norms; the matrices
of one layer are decoded as well, and compared value by value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.checkpoint import Inventory, MatrixFact, matrix_kind, open_source
from reallm_compiler.codecs.numerics.numbers import norm
from reallm_compiler.errors import SourceError
from reallm_compiler.evaluate.heatmap import same_error
from reallm_compiler.evaluate.spectrum import spectrum
from reallm_compiler.models.weights import Weights
from reallm_compiler.prepare import prepare_model, prepare_stages
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.report.files import ModelFile
from reallm_compiler.report.layers import PANELS
from reallm_compiler.report.steps import OnStep

POINTS = 96
"""Most points of a curve of singular values."""

BINS = 80
REACH = 8.0
"""Bins of a distribution, and how far it goes on both sides, in deviations of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """One matrix of one archive beside its original.

    Attributes:
        name: the matrix.
        weight_spectrum, error_spectrum, residual_spectrum: (index / number of singular values,
            singular value / norm of the original); the last is empty without a low-rank residual.
        weight_density, error_density: (value / rms of the original, density).
    """

    name: str
    weight_spectrum: list[tuple[float, float]]
    error_spectrum: list[tuple[float, float]]
    residual_spectrum: list[tuple[float, float]]
    weight_density: list[tuple[float, float]]
    error_density: list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Originals:
    """What was measured.

    Attributes:
        norms: Frobenius norm of the original of each matrix, by (label of a file, matrix).
        curves: by kind of matrix, then by label of a file.
        strangers: labels of files whose errors show that they were made of another model.
    """

    norms: Mapping[tuple[str, str], float]
    curves: Mapping[str, Mapping[str, Curves]]
    strangers: tuple[str, ...]


def compare(
    models: Sequence[ModelFile],
    reference: str | os.PathLike[str],
    *,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    on_step: OnStep,
) -> Originals:
    """Measure archives beside the checkpoint at `reference`.

    Raises:
        SourceError: the checkpoint cannot be read, has no weights, or lacks a matrix.
        FormatError: an archive is damaged.
    """
    source = open_source(reference)
    if not source.complete:
        raise SourceError("this model has no weights", location=str(reference))
    norms: dict[tuple[str, str], float] = {}
    curves: dict[str, dict[str, Curves]] = {}
    strangers = []
    chosen = {model.label: representatives(model) for model in models}
    total = sum(len(model.budget.matrices) for model in models)
    known: dict[tuple[str, str], float] = {}
    done = 0
    for model in models:
        prepared = prepare_stages(model.opened.plan.recipe)
        inventory = prepare_model(source, prepared)
        read = _reader(inventory, model)
        own = True
        with open_archive(model.path, decoder=decoder, allow_cost=allow_cost) as archive:
            for row in model.budget.matrices:
                key = (repr(prepared), row.name)
                looked_at = row.name in chosen[model.label]
                weight = read(row.name) if looked_at or key not in known else None
                if weight is not None and key not in known:
                    known[key] = norm(weight)
                norms[model.label, row.name] = known[key]
                if looked_at and weight is not None and known[key] > 0:
                    decoded = archive.matrix(row.name, dtype=torch.float32)
                    found, measured = _curves(row.name, weight, decoded, archive.factors(row.name))
                    curves.setdefault(matrix_kind(row.name), {})[model.label] = found
                    own = own and same_error(measured, model.errors[row.name])
                done += 1
                on_step("compare", "matrices", done, total)
        if not own:
            strangers.append(model.label)
    return Originals(norms=norms, curves=curves, strangers=tuple(strangers))


def representatives(model: ModelFile) -> set[str]:
    """The matrices that are looked at: of each kind the first one of the middle layer."""
    kinds = model.by_kind_and_layer
    largest = sorted(
        kinds, key=lambda kind: -sum(row.numel for rows in kinds[kind].values() for row in rows)
    )
    found = set()
    for kind in largest[:PANELS]:
        layers = list(kinds[kind].values())
        found.add(layers[(len(layers) - 1) // 2][0].name)
    return found


def _reader(inventory: Inventory, model: ModelFile) -> Callable[[str], Tensor]:
    """Gives the original of a matrix [p, q]."""
    facts: dict[str, MatrixFact] = {fact.name: fact for fact in inventory.matrices()}
    weights = Weights(inventory)
    for row in model.budget.matrices:
        fact = facts.get(row.name)
        if fact is None or fact.shape != row.shape:
            raise SourceError(
                f"the reference has no matrix `{row.name}` of {row.shape[0]} x {row.shape[1]}",
                location=str(inventory.path),
                hint=f"give the checkpoint that `{model.path}` was made of",
            )

    def read(name: str) -> Tensor:
        fact = facts[name]
        return weights.matrix(fact.tensor, fact.index, transposed=fact.transposed)

    return read


def _curves(
    name: str, weight: Tensor, decoded: Tensor, factors: tuple[Tensor, Tensor] | None
) -> tuple[Curves, float]:
    """The curves of a matrix, and its relative error; `decoded` is used up."""
    error = decoded.neg_().add_(weight)  # [p, q], float32
    size = norm(weight)
    rms = size / math.sqrt(weight.numel())
    count = min(weight.shape)
    residual: list[tuple[float, float]] = []
    if factors is not None:
        left, right = (factor.double() for factor in factors)  # [p, r], [r, q]
        inner = torch.linalg.qr(left)[1] @ torch.linalg.qr(right.t())[1].t()  # [r, r]
        residual = _points(torch.linalg.svdvals(inner).tolist(), size, count)
    curves = Curves(
        name=name,
        weight_spectrum=_points(spectrum(weight).values, size, count),
        error_spectrum=_points(spectrum(error).values, size, count),
        residual_spectrum=residual,
        weight_density=_density(weight, rms),
        error_density=_density(error, rms),
    )
    return curves, norm(error) / size


def _points(values: Sequence[float], size: float, count: int) -> list[tuple[float, float]]:
    """Singular values by `size` over their index, `POINTS` at most, both ends among them."""
    last = len(values) - 1
    number = min(POINTS, len(values))
    chosen = sorted({round(step * last / max(1, number - 1)) for step in range(number)})
    return [((index + 1) / count, values[index] / size) for index in chosen]


def _density(values: Tensor, rms: float) -> list[tuple[float, float]]:
    """Share of the values in each bin over its width; what lies beyond the ends is left out."""
    scaled = values.float().flatten() / rms
    counts = torch.histc(scaled, bins=BINS, min=-REACH, max=REACH)
    width = 2 * REACH / BINS
    return [
        (-REACH + (index + 0.5) * width, counted / values.numel() / width)
        for index, counted in enumerate(counts.tolist())
    ]
