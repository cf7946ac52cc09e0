"""Adapters in the layout of the peft library, and back.

peft adds its factors to the base's weight, while an adapter of ours replaces those of the base. So
the base for peft is the coded part alone, which `reallm reconstruct --coded-only` writes:

    lora_B = L1 [p, r]    lora_A = L2 [r, q]    lora_magnitude_vector = m [p]    alpha = r

With `use_dora` peft computes m (V + B A) / ||V + B A||_row, which is what we decode. Only files are
read and written here; peft itself is not needed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reallm_compiler.distribution import VERSION
from reallm_compiler.errors import AdapterError
from reallm_compiler.finetune.run import config_of
from reallm_compiler.finetune.store import Parts, write_adapter
from reallm_compiler.publish import check_file, new_folder, owned, refuse_inputs
from reallm_compiler.reader.adapter import AdapterArchive
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_compiler.reader.reconstruct import save_tensors
from reallm_compiler.runtime.tunable import module_name
from reallm_compiler.sources.architecture import meta_model

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_REFUSED = ("layer_replication", "alora_invocation_tokens", "megatron_config", "loftq_config")


def export_peft(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    base_folder: str = "",
    force: bool = False,
) -> Path:
    """Write an adapter, or the archive's own factors, as a folder that peft loads.

    Args:
        archive: the base.
        output: the folder to make.
        adapter: the adapter; the archive's own parts when None.
        base_folder: what peft shall take for its base: the folder of
            `reallm reconstruct --coded-only`. It may be left out and given to peft later.
        force: replace a folder that reallm wrote.

    Raises:
        AdapterError: peft has no words for this adapter.
        FormatError, OutputError: a file is damaged, or cannot be written.
    """
    target = Path(output).absolute()
    with open_archive(archive, adapter=adapter) as base:
        model = _empty_model(base)
        tensors: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        with_magnitude = set()
        for name in base.names:
            parts = _parts(base, name)
            if not parts:
                continue
            matrix = base.plan.by_name[name]
            module = module_name(model, matrix.tensor)
            if matrix.index is not None or "l1" not in parts:
                raise AdapterError(
                    f"peft has no place for the parts of {name}",
                    note="it knows factors of linear layers, with or without magnitudes",
                )
            ranks[module] = parts["l1"].shape[1]
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = parts["l2"].contiguous()
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = parts["l1"].contiguous()
            if "magnitude" in parts:
                with_magnitude.add(module)
                tensors[f"{_PREFIX}{module}.lora_magnitude_vector"] = parts["magnitude"]
        transposed = {matrix.transposed for matrix in base.plan.matrices}
    if not ranks:
        raise AdapterError("there are no factors to export", location=str(archive))
    if with_magnitude and with_magnitude != set(ranks):
        raise AdapterError(
            "some matrices have magnitudes and others have none",
            note="peft switches DoRA on for all layers of an adapter or for none",
        )
    most = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_folder or None,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "use_dora": bool(with_magnitude),
        "fan_in_fan_out": transposed == {True},
        "bias": "none",
        "lora_dropout": 0.0,
    }
    with new_folder(target, force=force) as folder:
        save_tensors(tensors, folder / WEIGHTS)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
    return target


def import_peft(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    factors: str | None = None,
    force: bool = False,
) -> tuple[int, float]:
    """Make an adapter of a folder that peft wrote over the base's coded part.

    A matrix that the folder does not hold has its coded part alone, as it has under peft.

    Args:
        archive: the base.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        output: the adapter to write.
        factors: stored type of the factors; that of the base when None.
        force: replace an existing output.

    Returns:
        The adapter's length in bytes, and the largest error of rounding factors.

    Raises:
        AdapterError: the folder is no LoRA adapter, does not fit the base, or uses what has no
            place in an adapter of ours.
        OutputError: the output exists without `force`, another run writes it, or it cannot be
            written.
    """
    target = Path(output).absolute()
    check_file(target, force=force)
    refuse_inputs(target, archive, folder)
    config, tensors = _read(Path(folder))
    with owned(target), open_archive(archive) as base:
        model = _empty_model(base)
        tuned: dict[str, Parts] = {}
        for name in base.names:
            matrix = base.plan.by_name[name]
            own = _parts(base, name)
            module = _PREFIX + module_name(model, matrix.tensor)
            left = tensors.pop(f"{module}.lora_B.weight", None)
            right = tensors.pop(f"{module}.lora_A.weight", None)
            magnitude = tensors.pop(f"{module}.lora_magnitude_vector", None)
            if left is None or right is None:
                if own:
                    tuned[name] = {}
                continue
            p, q = matrix.shape
            rank = right.shape[0]
            if tuple(left.shape) != (p, rank) or tuple(right.shape) != (rank, q):
                raise AdapterError(
                    f"the factors of {name} are {list(left.shape)} and {list(right.shape)}",
                    location=str(folder),
                    note=f"the base has {p} x {q} there",
                )
            scaling = _scaling(config, module.removeprefix(_PREFIX), rank)
            parts = {"l1": left.float() * scaling, "l2": right.float()}
            if magnitude is not None:
                parts["magnitude"] = magnitude.float().reshape(-1)
            tuned[name] = parts
        if tensors:
            raise AdapterError(
                f"{sorted(tensors)[0]} has no place in this base",
                location=str(folder),
                note="it belongs to another model, or to a layer that is not coded here",
            )
        return write_adapter(
            target,
            base,
            tuned,
            factors=factors,
            settings={"imported": "peft"},
            provenance={"reallm": VERSION},
            force=force,
        )


def _parts(base: ModelArchive, name: str) -> dict[str, Tensor]:
    """The parts in use: of the archive's adapter where it has the matrix, else its own."""
    adapter: AdapterArchive | None = base.adapter
    if adapter is not None and name in adapter.rows:
        return adapter.parts(name)
    parts: dict[str, Tensor] = {}
    factors = base.factors(name)
    if factors is not None:
        parts["l1"], parts["l2"] = factors
    magnitude = base.magnitude(name)
    if magnitude is not None:
        parts["magnitude"] = magnitude
    return parts


def _empty_model(base: ModelArchive) -> Any:  # noqa: ANN401 (transformers has no types)
    """The model without weights, to ask it for the names of its modules."""
    return meta_model(config_of(base), str(base.path))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a peft folder.

    Raises:
        AdapterError: it is none, or uses what has no place in an adapter of ours.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(
            "this is no folder of a peft adapter",
            location=str(folder),
            note=str(error),
            hint=f"it needs {CONFIG} and {WEIGHTS}",
        ) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError("this is no LoRA adapter", location=str(folder / CONFIG))
    used = [key for key in _REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("modules_to_save"):
        used.append("modules_to_save")
    if used:
        raise AdapterError(
            f"the adapter uses `{used[0]}`, which has no place here", location=str(folder / CONFIG)
        )
    return config, tensors


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """What peft multiplies B A by."""
    alpha = float(config.get("lora_alpha", rank))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
