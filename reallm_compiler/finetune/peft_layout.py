"""Adapters in the layout of the peft library, and back.

peft adds its factors to the base's weight, while an adapter of ours replaces those of the base. So
the base for peft is the coded part alone, which `reallm reconstruct --coded-only` writes:

    linear       lora_B = L1 [p, r], lora_A = L2 [r, q], lora_magnitude_vector = m [p]
    embedding    lora_embedding_A = L1^T [r, p], lora_embedding_B = L2^T [q, r]

and alpha = r. Modules that share a weight, such as a tied embedding and head, each have the
factors of the one matrix. With `use_dora` peft computes m (V + B A) / ||V + B A||_row, which is
what we decode with the gain g = m / ||V + B A||; those of an embedding it computes otherwise. Only
files are read and written here. Where peft is installed, it is asked whether it takes what was
exported; it is not needed.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reallm_compiler.codecs import dora
from reallm_compiler.distribution import VERSION
from reallm_compiler.errors import AdapterError
from reallm_compiler.finetune.peft_config import CONFIG, config_for, read_config
from reallm_compiler.finetune.peft_parts import (
    EMBEDDING,
    LINEAR,
    PREFIX,
    agreed,
    from_peft,
    names_of,
    strange,
    to_peft,
)
from reallm_compiler.finetune.store import Parts, write_adapter
from reallm_compiler.models.names import modules_of
from reallm_compiler.models.shards import save_tensors
from reallm_compiler.publish import check_file, locked_output, new_folder, refuse_inputs
from reallm_compiler.reader.adapter import AdapterArchive
from reallm_compiler.reader.archive import ModelArchive, open_archive
from reallm_compiler.runtime.opening import empty_model

WEIGHTS = "adapter_model.safetensors"


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
        AdapterError: peft has nothing that means the same as this adapter.
        FormatError, OutputError: a file is damaged, or cannot be written.
    """
    target = Path(output).absolute()
    with open_archive(archive, adapter=adapter, allow_cost=True) as base:
        empty = empty_model(base)
        paths = modules_of(empty, base.plan.matrices)
        tensors: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        with_magnitude = set()
        for name in base.names:
            parts = _parts(base, name)
            if not parts:
                continue
            if "column_gain" in parts:
                raise AdapterError(
                    f"{name} has gains of columns, which peft does not know", location=str(archive)
                )
            kinds = [names_of(empty.get_submodule(path)) for path in paths.get(name, ())]
            if "l1" not in parts or not kinds or None in kinds:
                raise AdapterError(
                    f"peft has no module for the parts of {name}",
                    location=str(archive),
                    note="it knows factors of whole linear layers and embeddings, with or without "
                    "magnitudes",
                )
            for path, ends in zip(paths[name], kinds, strict=True):
                ranks[path] = parts["l1"].shape[1]
                made = to_peft(parts, ends or LINEAR)
                if "gain" in parts:
                    if ends is EMBEDDING:
                        raise AdapterError(
                            f"{name} is an embedding with gains of rows",
                            location=str(archive),
                            note="peft scales columns of an embedding, a reallm adapter rows",
                        )
                    with_magnitude.add(path)
                    made[LINEAR[2]] = parts["gain"] * _norms(base, name, parts)
                tensors |= {f"{PREFIX}{path}{end}": value for end, value in made.items()}
        transposed = {matrix.transposed for matrix in base.plan.matrices}
    if not ranks:
        raise AdapterError("there are no factors to export", location=str(archive))
    if with_magnitude and with_magnitude != set(ranks):
        raise AdapterError(
            "some matrices have gains and others have none",
            location=str(archive),
            note="peft switches DoRA on for all layers of an adapter or for none",
        )
    config = config_for(
        ranks,
        [path for path, _ in empty.named_modules()],
        dora=bool(with_magnitude),
        transposed=transposed == {True},
        causal=empty.can_generate() and not empty.config.is_encoder_decoder,
        base_folder=base_folder,
    )
    _check_taken(empty, config, tensors, str(archive))
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
        AdapterError: the folder is no LoRA adapter, does not fit the base, or uses what an adapter
            of ours does not have.
        OutputError: the output exists without `force`, another run writes it, or it cannot be
            written.
    """
    target = Path(output).absolute()
    check_file(target, force=force)
    refuse_inputs(target, archive, folder)
    config = read_config(Path(folder))
    tensors = _read_weights(Path(folder))
    with locked_output(target), open_archive(archive, allow_cost=True) as base:
        empty = empty_model(base)
        paths = modules_of(empty, base.plan.matrices)
        tuned: dict[str, dict[str, Tensor]] = {}
        for name in base.names:
            found: dict[str, Parts] = {}
            for path in paths.get(name, ()):
                shape = base.plan.by_name[name].shape
                parts = from_peft(empty.get_submodule(path), path, shape, tensors, config)
                if parts is not None:
                    found[path] = parts
            if found:
                tuned[name] = dict(agreed(found, paths[name], config, str(folder)))
                if "magnitude" in tuned[name]:
                    norms = _norms(base, name, tuned[name])
                    tuned[name]["gain"] = dora.gain_of(tuned[name].pop("magnitude"), norms)
            elif _parts(base, name):
                tuned[name] = {}
        if tensors:
            raise strange(sorted(tensors), str(folder))
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
    gain = base.gain(name)
    if gain is not None:
        parts["gain"] = gain
    return parts


def _norms(base: ModelArchive, name: str, parts: Parts) -> Tensor:
    """||V + L1 L2|| of each row [p], float32."""
    coded = base.coded(name, dtype=torch.float32)
    return dora.row_norms(coded, parts.get("l1"), parts.get("l2"))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a peft folder.

    Raises:
        AdapterError: there are none.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(
            "this is not a PEFT adapter folder",
            location=str(folder),
            note=str(error),
            hint=f"it needs {CONFIG} and {WEIGHTS}",
        ) from None


def _check_taken(
    empty: Any,  # noqa: ANN401 (transformers has no types)
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    location: str,
) -> None:
    """Let peft, where it is installed, put the factors into the model without weights.

    Raises:
        AdapterError: it refuses the model, or leaves factors out; with the names.
    """
    try:
        import peft
        from peft.utils import set_peft_model_state_dict
    except ImportError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are for those who train
        try:
            plain = peft.LoraConfig(**{k: v for k, v in config.items() if k != "peft_type"})
            model = peft.get_peft_model(empty, plain, low_cpu_mem_usage=True)
            loaded: Any = set_peft_model_state_dict(model, dict(tensors), low_cpu_mem_usage=True)
        except Exception as error:  # whatever it has against this model
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise AdapterError(
                "peft does not adapt this model", location=location, note=reason[0]
            ) from error
    left_out = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if "lora_" in key)]
    if left_out:
        raise AdapterError(
            f"peft would leave out {len(left_out)} of the factors, such as {left_out[0]}",
            location=location,
        )
