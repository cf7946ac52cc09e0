"""Archives as GGUF files, for llama.cpp and the programs on top of it.

Matrices whose plan a type of GGUF holds are written in it, bit for bit before they are rounded to
the model's type; all others are written decoded, in the model's own type (F16, BF16 or F32), and
vectors in F32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.distribution import VERSION, install_command
from reallm_compiler.errors import ExportError
from reallm_compiler.integrations.gguf_blocks import packed
from reallm_compiler.integrations.gguf_model import GgufModel
from reallm_compiler.integrations.gguf_tokenizer import tokenizer_metadata
from reallm_compiler.integrations.grids import Grid, UnfitError, grid_of
from reallm_compiler.models.build import class_of
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.progress import OnProgress
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.reader.huggingface import archive_files

FLOATS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
"""Types of decoded weights."""

FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of the file.

    Attributes:
        kind: its type, a name of GGUF.
        shape: its extents.
        nbytes: of its data.
        data: makes its bytes.
    """

    kind: str
    shape: tuple[int, ...]
    nbytes: int
    data: Callable[[], np.ndarray]


def write_gguf(archive: ModelArchive, path: Path, report: OnProgress) -> list[str]:
    """Write the model of an archive as a GGUF file.

    Args:
        archive: the archive.
        path: the file to write.
        report: is called with tensors that are written, and how many there are.

    Returns:
        Names of the coded matrices that are written as dense weights.

    Raises:
        ExportError: GGUF, or this module, does not know the model or its tokenizer, or the library
            `gguf` is not installed.
        FormatError: the archive is damaged.
    """
    library = _library()
    files = archive_files(archive)
    config, made = class_of(files)
    model = GgufModel(config, made.__name__, files.label)
    metadata = tokenizer_metadata(files.small, config.vocab_size, files.label)
    matrices = {matrix.tensor: matrix for matrix in archive.plan.matrices}
    entries: dict[str, _Entry] = {}
    dense = []
    for name in archive.tensor_names:
        matrix, order = matrices.get(name), model.row_order(name)
        entry = None
        if matrix is not None:
            entry = _coded(archive, matrix, order)
            dense += [] if entry is not None else [matrix.name]
        entries[model.name(name)] = entry or _decoded(archive, name, order)
    factors = model.rope_factors()
    if factors is not None:
        entries[FACTORS] = _values(factors)
    writer = library.GGUFWriter(path, model.architecture)
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    writer.add_file_type(_file_type(library, entries))
    writer.add_quantized_by(f"reallm {VERSION}")
    own = {f"{model.architecture}.{key}": value for key, value in model.numbers().items()}
    for key, value in (own | metadata).items():
        _add(library, writer, key, value)
    _write(library, writer, entries, report)
    return dense


def _coded(archive: ModelArchive, matrix: PlannedMatrix, order: Tensor | None) -> _Entry | None:
    """A matrix in a type of GGUF; None where none holds it."""
    try:
        kind, data = packed(_ordered(grid_of(archive, matrix), order))
    except UnfitError:
        return None

    def again() -> np.ndarray:
        return packed(_ordered(grid_of(archive, matrix), order))[1].numpy()

    return _Entry(kind, matrix.shape, data.nbytes, again)


def _ordered(grid: Grid, order: Tensor | None) -> Grid:
    return grid if order is None else grid.rows(order)


def _decoded(archive: ModelArchive, name: str, order: Tensor | None) -> _Entry:
    """A tensor as it is; vectors in float32."""
    shape, dtype = archive.shape_of(name)
    stored = torch.float32 if len(shape) == 1 else TORCH_DTYPES[dtype]
    if stored not in FLOATS:
        raise ExportError(
            f"`{name}` is of type {dtype}, which is not written as GGUF",
            location=str(archive.path),
        )
    count = int(np.prod(shape))

    def read() -> np.ndarray:
        values = archive.tensor(name).to(stored)
        values = values if order is None else values[order]
        return values.contiguous().view(torch.uint8).numpy()

    return _Entry(FLOATS[stored], shape, count * stored.itemsize, read)


def _values(values: Tensor) -> _Entry:
    data = values.view(torch.uint8).numpy()
    return _Entry("F32", tuple(values.shape), data.nbytes, partial(np.asarray, data))


def _write(
    library: Any,  # noqa: ANN401
    writer: Any,  # noqa: ANN401
    entries: Mapping[str, _Entry],
    report: OnProgress,
) -> None:
    """Header, metadata, the table of tensors, then one tensor after another."""
    for name, entry in entries.items():
        kind = library.GGMLQuantizationType[entry.kind]
        # The type of the array only says whether the extents are those of bytes: they are not.
        writer.add_tensor_info(name, entry.shape, np.dtype(np.float32), entry.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, entry in enumerate(entries.values()):
        report(done, len(entries))
        writer.write_tensor_data(entry.data())
    writer.close()
    report(len(entries), len(entries))


def _add(library: Any, writer: Any, key: str, value: Any) -> None:  # noqa: ANN401
    """One piece of metadata, in the type that readers expect."""
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    writer.add_key_value(key, value, library.GGUFValueType[kinds[type(value)]])


def _file_type(library: Any, entries: Mapping[str, _Entry]) -> int:  # noqa: ANN401
    """The type that most weights have, as a number of GGUF."""
    sizes: dict[str, int] = {}
    for entry in entries.values():
        sizes[entry.kind] = sizes.get(entry.kind, 0) + int(np.prod(entry.shape))
    most = max(sizes, key=lambda kind: sizes[kind])
    name = "ALL_F32" if most == "F32" else f"MOSTLY_{most}"
    return int(library.LlamaFileType[name])


def _library() -> Any:  # noqa: ANN401
    try:
        import gguf
    except ImportError as error:
        raise ExportError(
            "the library `gguf` is not installed",
            hint=install_command("exports"),
        ) from error
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf
