"""What `diff` compares: an archive, a recipe or a budget as settings and rows of plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reallm_compiler.errors import FormatError, SourceError
from reallm_compiler.planning.build import plan as build_plan
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.opened import open_facts, provenance_text
from reallm_compiler.recipe import load_recipe
from reallm_formats import Archive, Manifest, names, section_bytes
from reallm_formats.v1 import MAGIC

Fields = Mapping[str, Any]

GROUPS = ("totals", "recipe", "settings", "provenance")
"""Groups of settings, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One side of a comparison.

    Attributes:
        kind: `model`, `adapter`, `recipe` or `budget`; only like is compared with like.
        name: as it was given.
        settings: trees of plain data by group.
        rows: fields of each row by group, then by name.
    """

    kind: str
    name: str
    settings: Mapping[str, Fields]
    rows: Mapping[str, Mapping[str, Fields]] = field(default_factory=dict)


def read_document(
    source: str | os.PathLike[str], *, model: str | os.PathLike[str] | None = None
) -> Document:
    """Read one side.

    Args:
        source: an archive, a recipe (a shipped one's name or a file), or the JSON that `reallm
            budget --json` printed.
        model: a checkpoint or a config on which recipes are planned; without one a recipe's
            settings alone are compared.

    Raises:
        FormatError, RecipeError, SourceError: it is none of these, or a broken one.
    """
    name = os.fspath(source)
    path = Path(name)
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
        if start == MAGIC or path.suffix == ".reallm":
            return _archive(name)
        budget = _budget(path)
        if budget is not None:
            return budget
    loaded = load_recipe(source)
    settings: dict[str, Fields] = {"recipe": loaded.document}
    if model is None:
        return Document(kind="recipe", name=name, settings=settings)
    plan = build_plan(loaded, model=model)
    rows = {"matrices": _matrices(plan), "tensors": _tensors(plan)}
    settings["totals"] = plan.budget().totals.to_json()
    return Document(kind="recipe", name=name, settings=settings, rows=rows)


def _archive(path: str) -> Document:
    with Archive.open(path) as archive:
        kind = archive.kind
        if kind == "adapter":
            return _adapter(archive, path)
    if kind != "model":
        raise FormatError(
            "M3",
            f"archives of models and adapters are compared, and this is of kind `{kind}`",
            location=path,
        )
    opened = open_facts(path)
    plan, manifest = opened.plan, opened.manifest
    errors = opened.errors
    digests = _digests(manifest)
    matrices = {}
    for name, row in _matrices(plan).items():
        matrix = plan.by_name[name]
        stored = [digests[matrix.section_name(spec)] for spec in matrix.specs]
        matrices[name] = {**row, "relative_error": errors[name], "sha256": stored}
    tensors = {
        name: {**row, "sha256": digests[names.tensor_section(name)]}
        for name, row in _tensors(plan).items()
    }
    files = {
        file.path: {"bytes": file.nbytes, "sha256": digests[names.file_section(file.path)]}
        for file in plan.files
    }
    return Document(
        kind="model",
        name=path,
        settings={
            "totals": plan.budget().totals.to_json(),
            "recipe": dict(plan.recipe),
            "provenance": provenance_text(manifest.document["provenance"]),
        },
        rows={"matrices": matrices, "tensors": tensors, "files": files},
    )


def _adapter(archive: Archive, path: str) -> Document:
    document = archive.adapter
    digests = _digests(archive.manifest)
    matrices = {
        row.name: {
            **{key: value for key, value in row.plain().items() if key != "name"},
            "bytes": sum(section_bytes(dtype, shape) for _, dtype, shape in row.sections()),
            "sha256": [digests[name] for name, _, _ in row.sections()],
        }
        for row in document.matrices
    }
    replaced = {
        name: {
            "dtype": dtype,
            "shape": list(shape),
            "bytes": section_bytes(dtype, shape),
            "sha256": digests[name],
        }
        for name, dtype, shape in document.replaced
    }
    return Document(
        kind="adapter",
        name=path,
        settings={
            "totals": {"file_bytes": archive.file_bytes},
            "settings": dict(document.settings),
            "provenance": {
                "base": document.base.hex(),
                **provenance_text(document.provenance),
            },
        },
        rows={"matrices": matrices, "replaced": replaced},
    )


def _budget(path: Path) -> Document | None:
    """The JSON of `reallm budget --json`; None where a file is no JSON, or other JSON."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(plain, dict) or not {"totals", "matrices"} <= set(plain):
        return None
    rows = plain["matrices"] if isinstance(plain["matrices"], list) else [None]
    named = all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows)
    if not named or not isinstance(plain["totals"], dict):
        raise SourceError(
            "`totals` and `matrices` are there, but not as `reallm budget --json` writes them",
            location=str(path),
        )
    matrices = {
        row["name"]: {key: value for key, value in row.items() if key not in ("name", "sections")}
        for row in plain["matrices"]
    }
    settings = {"totals": plain["totals"]}
    if isinstance(plain.get("recipe"), dict):  # of `reallm inspect --json`
        settings["recipe"] = plain["recipe"]
    return Document(kind="budget", name=str(path), settings=settings, rows={"matrices": matrices})


def _matrices(plan: Plan) -> dict[str, dict[str, Any]]:
    """The plan and the sizes of each coded matrix."""
    plain = {id(matrix.plan): matrix.plan.plain() for matrix in plan.matrices}
    found = {}
    for row in plan.budget().matrices:
        fields = row.to_json()
        found[fields.pop("name")] = {**fields, "plan": plain[id(plan.by_name[row.name].plan)]}
    return found


def _tensors(plan: Plan) -> dict[str, dict[str, Any]]:
    """Types, extents and bytes of kept tensors."""
    return {
        tensor.name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "bytes": tensor.spec.nbytes,
        }
        for tensor in plan.tensors
    }


def _digests(manifest: Manifest) -> dict[str, str]:
    return {entry.name: entry.sha256.hex() for entry in manifest.sections}
