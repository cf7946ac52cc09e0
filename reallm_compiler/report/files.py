"""The files that a report is about: models and adapters, read from their manifests alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from reallm_compiler.checkpoint import layer_index, matrix_kind
from reallm_compiler.checkpoint.linear import known_role
from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.planning.budget import Budget, MatrixBudget
from reallm_compiler.planning.budget_rows import BudgetRow, budget_rows, pattern_of
from reallm_compiler.planning.opened import Opened, open_facts, provenance_text
from reallm_compiler.storage.matrix import TERMS
from reallm_formats import AdapterDocument, Archive, section_bytes
from reallm_formats.errors import printable

Part = tuple[str, int]
"""A name and its bytes."""


@dataclass(frozen=True)
class ModelFile:
    """An archive of a model.

    Attributes:
        label: a name that no other file of the report has.
        opened: its facts.
    """

    label: str
    opened: Opened

    @property
    def path(self) -> str:
        """The file, as it was given."""
        return self.opened.path

    @property
    def digest(self) -> bytes:
        """Names every byte of the file."""
        return self.opened.digest

    @cached_property
    def budget(self) -> Budget:
        """Exact sizes."""
        return self.opened.plan.budget()

    @property
    def errors(self) -> dict[str, float]:
        """||W - W^|| / ||W|| of each coded matrix, measured when it was coded."""
        return self.opened.errors

    @cached_property
    def rows(self) -> list[BudgetRow]:
        """Matrices that are alike, in storage order."""
        return budget_rows(self.opened.plan, self.budget.matrices)

    @property
    def mean_error(self) -> float | None:
        """Mean of `errors`, as `reallm inspect` shows it; None where nothing is coded."""
        return mean([self.errors[row.name] for row in self.budget.matrices])

    def parts(self) -> list[Part]:
        """Every byte of the file by what it holds; they add up to its length."""
        terms: Counter[str] = Counter()
        for row in self.budget.matrices:
            terms.update(row.terms)
        totals = self.budget.totals
        return [
            *((term.replace("_", " "), terms[term]) for term in TERMS if terms[term]),
            ("kept tensors", totals.kept_bytes),
            ("config and tokenizer", totals.other_bytes),
            ("header", totals.header_bytes),
            ("manifest", totals.manifest_bytes),
            ("padding", totals.padding_bytes),
        ]

    def roles(self) -> list[Part]:
        """Bytes of all tensors by what they are for in the model, the largest first."""
        found: Counter[str] = Counter()
        plan = self.opened.plan
        for row in self.budget.matrices:
            tensor = plan.by_name[row.name].tensor
            found[f"{known_role(tensor) or 'linear'}, coded"] += row.nbytes
        for kept in plan.tensors:
            role = known_role(kept.name) or ("other" if len(kept.shape) > 1 else "vector")
            found[f"{role}, kept"] += kept.spec.nbytes
        return sorted(found.items(), key=lambda part: (-part[1], part[0]))

    def kept(self) -> list[Part]:
        """Bytes of kept tensors by their names with `*` for numbers, in storage order."""
        found: Counter[str] = Counter()
        for tensor in self.opened.plan.tensors:
            found[pattern_of(tensor.name)] += tensor.spec.nbytes
        return list(found.items())

    @cached_property
    def by_kind_and_layer(self) -> dict[str, dict[int | None, list[MatrixBudget]]]:
        """Coded matrices by kind, then by layer in ascending order; None: in no layer."""
        found: dict[str, dict[int | None, list[MatrixBudget]]] = {}
        for row in self.budget.matrices:
            layers = found.setdefault(matrix_kind(row.name), {})
            layers.setdefault(layer_index(row.name), []).append(row)
        return {
            kind: {
                layer: layers[layer]
                for layer in sorted(layers, key=lambda one: (one is None, one or 0))
            }
            for kind, layers in found.items()
        }


@dataclass(frozen=True)
class AdapterFile:
    """An adapter.

    Attributes:
        label: a name that no other file of the report has.
        path: the file, as it was given.
        digest: names every byte of it.
        document: what it holds.
        file_bytes: its length.
    """

    label: str
    path: str
    digest: bytes
    document: AdapterDocument
    file_bytes: int

    @property
    def provenance(self) -> dict[str, str]:
        """What made it, as text."""
        return provenance_text(self.document.provenance)

    def matrices(self) -> Iterator[tuple[str, int, float, int]]:
        """Name, rank, relative error of rounding its factors, and bytes of each matrix."""
        for row in self.document.matrices:
            size = sum(section_bytes(dtype, shape) for _, dtype, shape in row.sections())
            yield row.name, row.rank, row.rounding_error, size


ReportFile = ModelFile | AdapterFile


def read_files(paths: Sequence[str | os.PathLike[str]]) -> list[ReportFile]:
    """The files of a report.

    Raises:
        SourceError: there is none, or one is given twice.
        FormatError: one is no archive, breaks a rule of the format, or holds neither a model nor
            an adapter.
    """
    if not paths:
        raise SourceError("a report needs an archive", hint="give one or more `.reallm` files")
    given = [os.fspath(path) for path in paths]
    for path, count in Counter(os.path.realpath(path) for path in given).items():
        if count > 1:
            raise SourceError("the same file is given twice", location=path)
    return [_read(path, label) for path, label in zip(given, labels_of(given), strict=True)]


def labels_of(paths: Sequence[str]) -> list[str]:
    """The files' names without their endings; where two are alike, the paths."""
    stems = [Path(path).stem for path in paths]
    return [
        printable(stem if stems.count(stem) == 1 else path)
        for stem, path in zip(stems, paths, strict=True)
    ]


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def _read(path: str, label: str) -> ReportFile:
    with Archive.open(path) as archive:
        kind = archive.kind
        if kind == "adapter":
            return AdapterFile(label, path, archive.digest, archive.adapter, archive.file_bytes)
    if kind != "model":
        raise FormatError(
            "M3",
            f"a report shows models and adapters, and this is an archive of kind `{kind}`",
            location=path,
            hint=f"`reallm inspect {path}` shows what is in it",
        )
    return ModelFile(label, open_facts(path))
