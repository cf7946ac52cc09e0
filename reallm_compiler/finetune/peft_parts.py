"""Factors and magnitudes under the names that peft gives them, module by module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from reallm_compiler.errors import AdapterError
from reallm_compiler.finetune.peft_config import PeftConfig
from reallm_compiler.finetune.store import Parts
from reallm_compiler.models.names import is_linear

PREFIX = "base_model.model."
"""Before the path of each module."""

Names = tuple[str, str, str]
"""Ends of the names of left factor, right factor and magnitudes under a module."""

LINEAR: Names = (".lora_B.weight", ".lora_A.weight", ".lora_magnitude_vector")
EMBEDDING: Names = (".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")


def names_of(module: nn.Module) -> Names | None:
    """How peft names the factors of a module; None where it has none."""
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    return LINEAR if is_linear(module) else None


def to_peft(parts: Parts, ends: Names) -> dict[str, Tensor]:
    """The factors of one module, each with memory of its own."""
    turned = ends is EMBEDDING
    left, right = (parts[key].t() if turned else parts[key] for key in ("l1", "l2"))
    return {ends[0]: left.clone().contiguous(), ends[1]: right.clone().contiguous()}


def from_peft(
    module: nn.Module,
    path: str,
    shape: tuple[int, int],
    tensors: dict[str, Tensor],
    config: PeftConfig,
) -> Parts | None:
    """`l1`, `l2` and peft's own `magnitude` of one module, taken out of `tensors`; None without.

    Raises:
        AdapterError: they do not fit the base, or the config.
    """
    ends = names_of(module)
    if ends is None:
        return None
    named = [f"{PREFIX}{path}{end}" for end in ends]
    if named[0] not in tensors or named[1] not in tensors:
        return None
    left, right = (tensors.pop(name).float() for name in named[:2])
    if ends is EMBEDDING:
        left, right = left.t(), right.t()
    p, q = shape
    rank = right.shape[0]
    if left.shape != (p, rank) or right.shape != (rank, q):
        raise AdapterError(
            f"the factors of {path} are {list(left.shape)} and {list(right.shape)}",
            note=f"the base has {p} x {q} there",
        )
    parts = {"l1": left * config.scaling(path, rank), "l2": right}
    magnitude = tensors.pop(named[2], None)
    if config.dora:
        if ends is EMBEDDING:
            raise AdapterError(
                f"{path} is an embedding with `use_dora`",
                note="peft scales the columns of an embedding, and a reallm adapter the rows",
            )
        if magnitude is None or magnitude.numel() != p:
            raise AdapterError(f"{path} has no magnitudes for its {p} rows, and `use_dora` is set")
        parts["magnitude"] = magnitude.float().reshape(-1)
    elif magnitude is not None:
        raise AdapterError(f"{path} has magnitudes, and `use_dora` is not set")
    return parts


def agreed(
    found: Mapping[str, Parts], paths: tuple[str, ...], config: PeftConfig, folder: str
) -> Parts:
    """The parts of a matrix that several modules share, which must be the same for all.

    Raises:
        AdapterError: some are adapted and others are not, or not in the same way.
    """
    first, *others = found.values()
    left_out = [path for path in paths if path not in found]
    if left_out and not config.tied:
        raise AdapterError(
            f"{next(iter(found))} is adapted and {left_out[0]} is not; they share one weight here",
            location=folder,
            hint="train it with `ensure_weight_tying=True`",
        )
    for parts in others:
        if any(not parts[key].equal(first[key]) for key in first):
            raise AdapterError(
                f"{' and '.join(found)} have factors of their own; they share one weight here",
                location=folder,
                hint="train it with `ensure_weight_tying=True`",
            )
    return first


def strange(names: list[str], folder: str) -> AdapterError:
    """The error for tensors that no matrix of the base takes."""
    whole = [name for name in names if name.startswith(PREFIX) and "lora_" not in name]
    if whole:
        return AdapterError(
            f"{whole[0]} is not a factor but a weight of the base itself",
            location=folder,
            hint="save it again with `save_embedding_layers=False`",
        )
    return AdapterError(
        f"{names[0]} matches no module of this base",
        location=folder,
        note="it belongs to another model, or to a layer that is not coded here"
        + (f"; as do {len(names) - 1} more" if names[1:] else ""),
    )
