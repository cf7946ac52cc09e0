"""Archive -> a plain Hugging Face folder: safetensors, config, tokenizer.

Tensors are decoded one at a time and gathered into shards of bounded size, so the model is never
in memory as a whole. The folder appears under its name when it is complete (`publish`).
"""

from __future__ import annotations

import os
from pathlib import Path

from reallm_compiler.models.shards import ShardWriter
from reallm_compiler.models.small_files import write_files
from reallm_compiler.progress import OnProgress, Progress, progress_callback
from reallm_compiler.publish import new_folder
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_formats.dtypes import section_bytes


def reconstruct(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    coded_only: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    progress: Progress = True,
) -> Path:
    """Write the model of an archive as a Hugging Face folder.

    Args:
        path: the archive.
        output: the folder to make.
        force: replace a folder that reallm wrote and nobody changed since; any other is refused.
        coded_only: write the coded part alone of coded matrices: the base for an adapter that
            was exported to another library.
        adapter: an adapter whose factors and gains replace the archive's own.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.
        progress: see `reallm_compiler.progress`; counts decoded bytes.

    Returns:
        The folder.

    Raises:
        FormatError: the archive or its decoder is damaged.
        SourceError: its decoder is not there.
        OutputError: the folder exists without `force`, or cannot be written.
    """
    target = Path(output).absolute()
    with (
        new_folder(target, force=force) as folder,
        open_archive(path, adapter=adapter, decoder=decoder, allow_cost=allow_cost) as archive,
    ):
        archive.find_decoders()  # before the work
        write_files(archive.files(), folder)
        report = progress_callback(progress, "reconstruct", "bytes")
        _write_tensors(archive, folder, report, coded_only=coded_only)
    return target


def _write_tensors(
    archive: ModelArchive, folder: Path, report: OnProgress, *, coded_only: bool
) -> None:
    whole = sum(_decoded_bytes(archive).values())
    writer = ShardWriter(folder)
    for name in archive.tensor_names:
        report(writer.total, whole)
        writer.add(name, archive.tensor(name, coded_only=coded_only))
    writer.finish()
    report(writer.total, whole)


def _decoded_bytes(archive: ModelArchive) -> dict[str, int]:
    sizes = {
        tensor.name: section_bytes(tensor.dtype, tensor.shape) for tensor in archive.plan.tensors
    }
    for matrix in archive.plan.matrices:
        size = section_bytes(matrix.dtype, matrix.shape)
        sizes[matrix.tensor] = sizes.get(matrix.tensor, 0) + size
    return sizes
