"""An archive in the format of another program."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_compiler.errors import ExportError
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.integrations.bitsandbytes import BitsandbytesLayout
from reallm_compiler.integrations.compressed_tensors import CompressedTensorsLayout
from reallm_compiler.integrations.formats import (
    BITSANDBYTES,
    COMPRESSED_TENSORS,
    FORMATS,
    GGUF,
    GPTQ,
    HF,
)
from reallm_compiler.integrations.gguf import write_gguf
from reallm_compiler.integrations.gptq import GptqLayout
from reallm_compiler.integrations.hf_folder import write_hf
from reallm_compiler.integrations.packed_folders import Layout, write_folder
from reallm_compiler.progress import Progress, progress_callback
from reallm_compiler.publish import new_file, new_folder, refuse_inputs
from reallm_compiler.reader.archive import open_archive

LAYOUTS: Mapping[str, Callable[[], Layout]] = {
    BITSANDBYTES: BitsandbytesLayout,
    COMPRESSED_TENSORS: CompressedTensorsLayout,
    GPTQ: GptqLayout,
}
"""Layouts of folders, by the names of their formats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: the folder or the file.
        dense: coded matrices that are written as dense weights.
    """

    path: Path
    dense: tuple[str, ...]


def export(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str,
    force: bool = False,
    quality: Mapping[str, Any] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    progress: Progress = True,
) -> ExportReport:
    """Write the model of an archive in the format of another program.

    `hf` keeps any plan as it is: reallm itself is the method of quantization, in transformers. What
    other programs make of the written codes is compared with the archive's weights, and must be
    equal to the last bit.

    Args:
        path: the archive.
        output: the folder or file to make.
        to: one of `FORMATS`.
        force: replace what is there; of folders only those that reallm wrote and nobody changed.
        quality: what was measured (`Evaluation.to_json`), for the model card of `hf`.
        decoder: where the trained decoders are that the archive uses but does not hold: a file, or
            a folder; beside the archive when None.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.
        progress: see `reallm_compiler.progress`; counts matrices.

    Raises:
        ExportError: there is no such format, or it cannot hold the model; with the reasons.
        FormatError: the archive or its decoder is damaged.
        SourceError: it holds no model that transformers knows, or its decoder is not there.
        OutputError: the output exists without `force`, or cannot be written.
    """
    if to not in FORMATS:
        raise ExportError(
            f"there is no format {to!r} to export to",
            hint=did_you_mean(nearest(to, FORMATS)) or f"formats are {', '.join(FORMATS)}",
        )
    target = Path(output).absolute()
    report = progress_callback(progress, "export", "matrices")
    with open_archive(path, decoder=decoder, allow_cost=allow_cost) as archive:
        if to == GGUF:
            refuse_inputs(target, path)
            with new_file(target, force=force) as partial:
                dense = write_gguf(archive, partial, report)
        else:
            with new_folder(target, force=force) as folder:
                dense = (
                    write_hf(archive, folder, report, quality)
                    if to == HF
                    else write_folder(archive, folder, LAYOUTS[to](), report)
                )
    return ExportReport(path=target, dense=tuple(dense))
