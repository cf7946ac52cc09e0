"""Folders of transformers with weights in the layout of another library.

Tensors that a layout does not hold are written as they are: norms, biases, embeddings, and the
head, which these libraries leave alone too. A linear layer that does not fit is an error, so that
a folder never holds less than it seems to.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reallm_compiler.checkpoint.architecture import meta_model
from reallm_compiler.checkpoint.folder import CONFIG
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import ExportError
from reallm_compiler.integrations.grids import Grid, UnfitError, grid_of
from reallm_compiler.models.shards import ShardWriter
from reallm_compiler.models.small_files import write_files
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.progress import OnProgress
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.reader.huggingface import archive_files

SHOWN = 4
"""Reasons that an error lists."""


class Layout(Protocol):
    """How a library stores quantized linear layers.

    Attributes:
        title: what it is called.
        wide_products: the library multiplies by scales in float32, whatever the model's type.
    """

    title: str
    wide_products: bool

    def add(self, name: str, grid: Grid) -> Mapping[str, Tensor]:
        """The tensors of a layer, by the last parts of their names.

        Raises:
            UnfitError: the layout cannot hold it.
        """

    def decoded(self, grid: Grid) -> Tensor:
        """The weights [p, q] that the library computes, by its own arithmetic."""

    def config(self, dense: list[str], head: str | None) -> dict[str, Any]:
        """The `quantization_config` of all layers that were added.

        Args:
            dense: names of the linear layers that were not.
            head: which one is the head.

        Raises:
            UnfitError: the layout cannot hold these layers together.
        """


def write_folder(
    archive: ModelArchive, folder: Path, layout: Layout, report: OnProgress
) -> list[str]:
    """Write the model of an archive in the layout of a library.

    Args:
        archive: the archive.
        folder: an empty folder.
        layout: how linear layers are stored.
        report: is called with matrices that are done, and how many there are.

    Returns:
        Names of the coded matrices that are written as dense weights.

    Raises:
        ExportError: linear layers do not fit the layout, with the reasons.
        FormatError: the archive is damaged.
        SourceError: it holds no model that transformers knows.
    """
    files = archive_files(archive)
    linear, head = linear_layers(meta_model(files.config, files.label))
    matrices = archive.plan.matrices
    layers = {
        matrix.tensor: matrix
        for matrix in matrices
        if matrix.name in linear and matrix.name != head and matrix.index is None
    }
    coded = {matrix.tensor for matrix in matrices}
    dense = [matrix.name for matrix in matrices if matrix.tensor not in layers]
    dtype = _type_to_run_in(archive, list(layers.values()), layout)
    writer = ShardWriter(folder)
    unfit: dict[str, list[str]] = defaultdict(list)
    done = 0
    for name in archive.tensor_names:
        matrix = layers.get(name)
        if matrix is None:
            decoded = dtype if name in coded else None  # what is kept stays as it is
            writer.add(name, archive.tensor(name, dtype=decoded))
            continue
        try:
            for part, tensor in _packed(archive, matrix, layout, dtype).items():
                writer.add(f"{matrix.name}.{part}", tensor)
        except UnfitError as error:
            unfit[str(error)].append(matrix.name)
        done += 1
        report(done, len(layers))
    if unfit or not layers:
        raise _refusal(archive, layout, unfit, len(layers))
    held = {matrix.name for matrix in layers.values()}
    try:
        stated = layout.config(sorted(linear - held), head)
    except UnfitError as error:
        raise ExportError(
            f"{layout.title} cannot hold these layers together: {error}",
            location=str(archive.path),
            hint="use one plan for all linear layers",
        ) from error
    writer.finish()
    write_files(archive.files(), folder)
    write_config(folder, files.config, stated, dtype)
    return dense


def _type_to_run_in(
    archive: ModelArchive, layers: list[PlannedMatrix], layout: Layout
) -> torch.dtype:
    """The type in which a library shall compute with all scales as they are.

    It is the model's own, or float16 for a model in bfloat16 whose scales are float16 numbers.
    """
    own = TORCH_DTYPES[layers[0].dtype] if layers else torch.float32
    if layout.wide_products:
        return own
    for dtype in (own, torch.float16):
        try:
            if all(_holds(dtype, grid_of(archive, matrix).scale) for matrix in layers):
                return dtype
        except UnfitError:  # the reason is given layer by layer
            return own
    return own


def _holds(dtype: torch.dtype, values: Tensor) -> bool:
    return torch.equal(values.to(dtype).to(torch.float32), values)


def linear_layers(model: nn.Module) -> tuple[set[str], str | None]:
    """Names of the linear layers of a model, and which one is the head."""
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    given: Any = model
    output = given.get_output_embeddings()
    return linear, next((name for name, module in model.named_modules() if module is output), None)


def write_config(
    folder: Path, config: Mapping[str, Any], stated: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """`config.json` with a statement of quantization, and the type to run in."""
    content = {key: value for key, value in config.items() if key != "torch_dtype"}
    content |= {"dtype": str(dtype).removeprefix("torch.")}
    content |= {"quantization_config": dict(stated)}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def exactly(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Float32 values in another type.

    Raises:
        UnfitError: that type does not hold them.
    """
    if not _holds(dtype, values):
        name = str(dtype).removeprefix("torch.")
        raise UnfitError(f"its {what} are no {name} numbers: store them with `dtype: {name}`")
    return values.to(dtype)


def _packed(
    archive: ModelArchive, matrix: PlannedMatrix, layout: Layout, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """The tensors of a layer, after what they decode to was compared with the archive's weights."""
    if matrix.transposed:
        raise UnfitError("its class stores it transposed")
    grid = replace(grid_of(archive, matrix), dtype=dtype)
    tensors = layout.add(matrix.name, grid)
    if not torch.equal(layout.decoded(grid), archive.matrix(matrix.name, dtype=dtype)):
        raise UnfitError("its products would be rounded in another way")
    return tensors


def _refusal(
    archive: ModelArchive, layout: Layout, unfit: Mapping[str, list[str]], count: int
) -> ExportError:
    if not count:
        return ExportError(
            f"no linear layer is coded, so there is nothing for {layout.title} to hold",
            location=str(archive.path),
            hint="`reallm reconstruct` writes the plain folder",
        )
    wrong = sum(map(len, unfit.values()))
    lines = [
        f"`{names[0]}`" + (f" and {len(names) - 1:,} more" if len(names) > 1 else "") + f": {why}"
        for why, names in sorted(unfit.items(), key=lambda item: -len(item[1]))
    ]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"... and {len(lines) - SHOWN:,} more reasons"]
    return ExportError(
        f"{layout.title} cannot hold {wrong:,} of {count:,} linear layers exactly",
        location=str(archive.path),
        note="\n".join(lines),
        hint="docs/export.md lists the recipes that fit; `reallm reconstruct` writes plain weights",
    )
