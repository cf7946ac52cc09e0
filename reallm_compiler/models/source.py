"""A checkpoint as the files of a transformers model."""

from __future__ import annotations

from functools import partial

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.errors import SourceError
from reallm_compiler.models.build import ModelFiles, Stored
from reallm_compiler.models.weights import Weights


def source_files(inventory: Inventory, label: str) -> ModelFiles:
    """The model of a checkpoint, its tensors read when they are taken.

    Args:
        inventory: of the checkpoint.
        label: what to call it in messages.

    Raises:
        SourceError: it has no config, or no weights.
    """
    if inventory.config is None:
        raise SourceError(
            "this checkpoint holds matrices without a config.json, so there is no model to build",
            location=label,
            hint="give the folder of a Hugging Face model, or a .reallm archive",
        )
    if not inventory.complete:
        raise SourceError(
            "the model has no weights, its config alone is there",
            location=label,
            hint="give the folder that holds its safetensors as well",
        )
    weights = Weights(inventory)
    return ModelFiles(
        label=label,
        config=inventory.config,
        small=dict(inventory.files),
        # A tied tensor that is stored twice is given twice: transformers compares the two.
        tensors={
            spec.name: Stored(
                TORCH_DTYPES[spec.dtype], partial(weights.tensor, spec.name, spec.dtype)
            )
            for spec in (*inventory.tensors, *inventory.duplicates)
        },
    )
