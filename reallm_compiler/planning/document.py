"""Plan to manifest document, and back.

An archive's document holds the recipe, each distinct matrix plan once, and for every matrix which
of them it uses. Reading it back gives the plan again, and the sections that the size laws ask for
must be exactly those that the archive holds: a file cannot say one thing and store another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from reallm_compiler.errors import FormatError
from reallm_compiler.planning.checks import check_files, check_methods, check_names
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedFile, PlannedMatrix, PlannedTensor
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.matrix import LayoutTable
from reallm_formats import Block, Layout, Manifest, names

Section = tuple[str, str, tuple[int, ...]]

PROVENANCE_WIDTH = 32
"""Characters of each text of the provenance: padded, so that no version changes the length."""


def fixed_text(text: str) -> str:
    """`text` at exactly `PROVENANCE_WIDTH` ASCII characters."""
    ascii_text = text.encode("ascii", "replace").decode("ascii")
    return ascii_text[:PROVENANCE_WIDTH].ljust(PROVENANCE_WIDTH)


def blank_provenance(*, statistics: bool = False, text: bool = False) -> dict[str, Any]:
    """Provenance of the right width, to be filled when the archive is finished.

    Args:
        statistics: whether the digest of a file of statistics is part of it.
        text: whether that of a text is, by which something learned.
    """
    blank = fixed_text("")
    given = {"source": True, "statistics": statistics, "text": text}
    digests = {name: bytes(32) for name, there in given.items() if there}
    return {"compute": blank, "reallm": blank, "torch": blank, **digests}


def section_blocks(
    matrices: Iterable[PlannedMatrix],
    tensors: Iterable[PlannedTensor],
    files: Iterable[PlannedFile],
) -> list[Block]:
    """All sections in storage order: files, kept tensors, then matrices.

    What a group shares stands before its first matrix.
    """
    whole: list[Section] = [(names.file_section(file.path), "u8", (file.nbytes,)) for file in files]
    whole += [(names.tensor_section(tensor.name), tensor.dtype, tensor.shape) for tensor in tensors]
    blocks = [Block("", tuple(whole))]
    groups: set[str | None] = {None}
    own: dict[int, tuple[Section, ...]] = {}
    for matrix in matrices:
        layout, group = matrix.layout, matrix.plan.share
        if group not in groups:
            groups.add(group)
            blocks.append(Block(f"{names.SHARE}{group}", _rows(layout.shared_sections)))
        rows = own.get(id(layout))
        if rows is None:
            rows = own[id(layout)] = _rows(layout.own_sections)
        blocks.append(Block(names.MATRIX + matrix.name, rows))
    return blocks


def _rows(specs: Iterable[SectionSpec]) -> tuple[Section, ...]:
    return tuple((spec.role, spec.dtype, spec.shape) for spec in specs)


def to_document(
    recipe: Mapping[str, Any],
    matrices: Iterable[PlannedMatrix],
    ties: Mapping[str, str],
    *,
    errors: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of a model archive.

    Args:
        recipe: the recipe as plain data, without `model` and `output`.
        matrices: coded matrices in storage order.
        ties: alias to stored tensor.
        errors: relative error of each matrix; zeros when not known yet.
        provenance: blank when not known yet.
    """
    methods: list[dict[str, Any]] = []
    method_of = _Methods(methods)
    rows = [
        {
            "name": matrix.name,
            "shape": list(matrix.shape),
            "dtype": matrix.dtype,
            "tensor": matrix.tensor,
            "index": matrix.index,
            "transposed": matrix.transposed,
            "method": method_of(matrix.plan),
            "relative_error": errors[matrix.name] if errors is not None else 0.0,
        }
        for matrix in matrices
    ]
    return {
        "recipe": dict(recipe),
        "methods": methods,
        "matrices": rows,
        "ties": dict(ties),
        "provenance": dict(provenance) if provenance is not None else blank_provenance(),
    }


class _Methods:
    """Index of each distinct plan in a document's list of methods, which grows by new ones.

    Plans are compared by identity first: a hash of a plan costs as much as a size law, and one
    object stands for many matrices.
    """

    def __init__(self, methods: list[dict[str, Any]]) -> None:
        self._methods = methods
        self._by_identity: dict[int, int] = {}
        self._by_plan: dict[MatrixPlan, int] = {}

    def __call__(self, plan: MatrixPlan) -> int:
        index = self._by_identity.get(id(plan))
        if index is None:
            index = self._by_plan.setdefault(plan, len(self._methods))
            if index == len(self._methods):
                self._methods.append(plan.plain())
            self._by_identity[id(plan)] = index
        return index


def from_manifest(manifest: Manifest, file_layout: Layout) -> Plan:
    """The plan of a model archive.

    Args:
        manifest: a structurally valid manifest of kind `model`.
        file_layout: its layout.

    Raises:
        FormatError: rules P1 to P4, such as sections other than the document asks for.
    """
    document = manifest.document
    methods = [_method(index, plain) for index, plain in enumerate(document["methods"])]
    matrices, layouts = [], LayoutTable()
    for index, row in enumerate(document["matrices"]):
        if row["method"] >= len(methods):
            raise FormatError(
                "D2",
                f"method {row['method']} of {len(methods)} does not exist",
                location=f"manifest: document.matrices[{index}]",
            )
        rows, columns = row["shape"]
        matrices.append(
            PlannedMatrix(
                name=row["name"],
                tensor=row["tensor"],
                index=row["index"],
                transposed=row["transposed"],
                layout=layouts.layout_of(methods[row["method"]], (rows, columns), row["dtype"]),
            )
        )
    tensors, files = [], []
    for entry in manifest.sections:
        if entry.name.startswith(names.TENSOR):
            name = entry.name.removeprefix(names.TENSOR)
            tensors.append(PlannedTensor(name=name, dtype=entry.dtype, shape=entry.shape))
        elif entry.name.startswith(names.FILE):
            path = entry.name.removeprefix(names.FILE)
            files.append(PlannedFile(path=path, nbytes=entry.nbytes))
    check_methods(methods, matrices)
    check_names(matrices, tensors)
    check_files(files)
    _check_groups(matrices)
    blocks = section_blocks(matrices, tensors, files)
    _check_sections(manifest, [section for block in blocks for section in block.sections()])
    return Plan(
        recipe=document["recipe"],
        matrices=tuple(matrices),
        tensors=tuple(tensors),
        files=tuple(files),
        ties=document["ties"],
        layout=file_layout,
    )


def _method(index: int, plain: Mapping[str, Any]) -> MatrixPlan:
    try:
        return MatrixPlan.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            "P1",
            f"a matrix plan that this version does not know: {path}: {first['msg']}",
            location=f"manifest: document.methods[{index}]",
            hint="a newer reallm may read this archive",
        ) from None


def _check_groups(matrices: Iterable[PlannedMatrix]) -> None:
    """Matrices of one group agree on what they share."""
    first: dict[str, tuple[str, tuple[SectionSpec, ...]]] = {}
    for matrix in matrices:
        if matrix.plan.share is None:
            continue
        shared = matrix.layout.shared_sections
        name, expected = first.setdefault(matrix.plan.share, (matrix.name, shared))
        if shared != expected:
            raise FormatError(
                "P3",
                f"{matrix.name} and {name} share `{matrix.plan.share}` but differ in what they "
                "share",
                location="manifest: document.matrices",
            )


def _check_sections(manifest: Manifest, wanted: list[Section]) -> None:
    """Sections in the file, in order, are those the document asks for."""
    found = [(entry.name, entry.dtype, tuple(entry.shape)) for entry in manifest.sections]
    if found == wanted:
        return
    for index, (have, want) in enumerate(zip(found, wanted, strict=False)):
        if have != want:
            raise FormatError(
                "P4",
                f"section {have[0]} is {have[1]}{list(have[2])} where the document asks for "
                f"{want[0]} as {want[1]}{list(want[2])}",
                location=f"manifest: sections[{index}]",
            )
    missing = len(wanted) - len(found)
    first = wanted[len(found)] if missing > 0 else found[len(wanted)]
    raise FormatError(
        "P4",
        f"the document asks for {len(wanted)} sections and the archive holds {len(found)}",
        location="manifest: sections",
        note=f"the first that is {'missing' if missing > 0 else 'too many'} is {first[0]}",
    )
