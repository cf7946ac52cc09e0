"""An archive as the files of a transformers model."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch

from reallm_compiler.checkpoint.folder import CONFIG
from reallm_compiler.checkpoint.paths import parse_json
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import SourceError
from reallm_compiler.models.build import ModelFiles, Stored
from reallm_compiler.reader.archive import ModelArchive


def archive_files(
    archive: ModelArchive,
    *,
    dtype: torch.dtype | None = None,
    coded_only: Collection[str] = (),
) -> ModelFiles:
    """The model of an open archive, its tensors decoded when they are taken.

    Args:
        archive: the archive; it must stay open until the model is built.
        dtype: type to decode floating-point tensors to; the checkpoint's own when None.
        coded_only: tensors of which the coded part alone is given, for those who add the rest.

    Raises:
        SourceError: the archive holds matrices without a config, or its decoder is not there.
        FormatError: the archive or its decoder is damaged.
    """
    archive.find_decoders()  # before the work
    label = str(archive.path)
    config = archive_config(archive)
    if config is None:
        raise SourceError(
            "this archive holds matrices without a config, so there is no model to build",
            location=label,
            hint="read single matrices with `reallm_compiler.open(path).matrix(name)`",
        )
    plan = archive.plan
    stored = {tensor.name: tensor.dtype for tensor in plan.tensors}
    stored |= {matrix.tensor: matrix.dtype for matrix in plan.matrices}
    return ModelFiles(
        label=label,
        config=config,
        small=dict(archive.files()),
        tensors={
            name: Stored(
                TORCH_DTYPES[stored[name]],
                partial(archive.tensor, name, dtype=dtype, coded_only=name in coded_only),
            )
            for name in archive.tensor_names
        },
        kv_cache=plan.recipe.get("kv_cache"),
    )


def archive_config(archive: ModelArchive) -> dict[str, Any] | None:
    """The config.json inside an archive; None if it holds none.

    Raises:
        SourceError: it is no JSON mapping.
    """
    for name, data in archive.files():
        if name == CONFIG:
            return parse_json(data, f"{archive.path}: {name}")
    return None
