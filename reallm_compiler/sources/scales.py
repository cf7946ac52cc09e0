"""Checkpoints that are quantised already: fp8 with scales is read, all else is refused.

An fp8 weight with a companion tensor of scales stands for `stored x scale`, per tensor, per row
or per block. Such a weight is listed with the type that it has after scaling, with its scales
attached, so every later room sees ordinary weights. The scales themselves, and the scales of
activations that only fp8 arithmetic would need, are taken off the list, and
`quantization_config` off the config: what is stored is no fp8 model any more.

An fp8 tensor without scales holds plain numbers and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import ScaleSpec, TensorSpec
from reallm_compiler.units import ceil_div

_READABLE = frozenset({"fp8", "fbgemm_fp8"})
_KEYS = ("quantization_config", "compression_config")
_SUFFIXES = ("_scale_inv", "_scale")
_ACTIVATIONS = ("input_scale", "activation_scale", "input_global_scale", "output_scale")
_PACKED = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "gate_up_proj_blocks": "MXFP4",
    "down_proj_blocks": "MXFP4",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "W_q": "HQQ",
    "codebooks": "AQLM",
    "Qidxs": "QuIP#",
    "trellis": "QTIP or EXL3",
}
_TYPES = {
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
    "half": "f16",
    "float": "f32",
    "float64": "f64",
}
_FP8 = ("f8_e4m3", "f8_e5m2")


def config_dtype(config: Mapping[str, Any] | None) -> str | None:
    """The element type that a config states, in the container's names, or None."""
    if config is None:
        return None
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            word = part.get(key)
            if isinstance(word, str) and word.removeprefix("torch.") in _TYPES:
                return _TYPES[word.removeprefix("torch.")]
    return None


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model that is left once the scales have been multiplied in."""
    return {key: value for key, value in config.items() if key not in _KEYS}


def refuse_packed(tensors: Iterable[TensorSpec], config: Mapping[str, Any] | None) -> None:
    """Refuses a checkpoint whose weights are already packed codes of another method.

    Raises:
        SourceError: the config or the names of the tensors say so.
    """
    for key in _KEYS:
        stated = (config or {}).get(key)
        if isinstance(stated, Mapping) and not _is_fp8(stated):
            raise _already(str(stated.get("quant_method", "unknown method")), "config.json")
    for tensor in tensors:
        method = _PACKED.get(tensor.name.rpartition(".")[2])
        if method:
            raise _already(method, f"{tensor.shard}: {tensor.name}")


def _is_fp8(stated: Mapping[str, Any]) -> bool:
    method = str(stated.get("quant_method", "")).lower()
    if method in _READABLE:
        return True
    groups = stated.get("config_groups")
    if method != "compressed-tensors" or not isinstance(groups, Mapping):
        return False
    weights = [g.get("weights") if isinstance(g, Mapping) else None for g in groups.values()]
    return bool(weights) and all(
        isinstance(w, Mapping) and w.get("type") == "float" and w.get("num_bits") == 8
        for w in weights
    )


def _already(method: str, location: str) -> SourceError:
    return SourceError(
        f"the checkpoint is quantised already ({method})",
        location=location,
        note="coding codes again would only add error",
        hint="start from the full-precision checkpoint that it was made from",
    )


def attach_scales(
    tensors: Iterable[TensorSpec], config: Mapping[str, Any] | None
) -> tuple[list[TensorSpec], int]:
    """Joins fp8 weights with their scales.

    Returns:
        The tensors that remain, in their order, and how many of them have scales.

    Raises:
        SourceError: the scales of a weight are missing or do not fit it.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    quantised = any(isinstance((config or {}).get(key), Mapping) for key in _KEYS)
    block = _stated_block(config)
    dtype = config_dtype(config) or "bf16"
    scaled: dict[str, TensorSpec] = {}
    used: set[str] = set()
    for tensor in by_name.values():
        if tensor.dtype not in _FP8:
            continue
        names = [tensor.name + suffix for suffix in _SUFFIXES if tensor.name + suffix in by_name]
        if not names:
            if quantised and len(tensor.shape) > 1:
                raise _unusable(tensor, "its scales are missing")
            continue
        scale = by_name[names[0]]
        if scale.dtype not in ("f32", "bf16", "f16"):
            raise _unusable(tensor, f"its scales have the type {scale.dtype}")
        grid, covered = _block(tensor, scale, block)
        scaled[tensor.name] = replace(
            tensor,
            dtype=dtype,
            stored=tensor.dtype,
            scale=ScaleSpec(tensor=replace(scale, shape=grid), block=covered),
        )
        used.update(names)
        module = tensor.name.removesuffix("weight")
        used.update(module + word for word in _ACTIVATIONS)
    kept = [scaled.get(name, tensor) for name, tensor in by_name.items() if name not in used]
    return kept, len(scaled)


def _stated_block(config: Mapping[str, Any] | None) -> tuple[int, int] | None:
    for key in _KEYS:
        stated = (config or {}).get(key)
        size = stated.get("weight_block_size") if isinstance(stated, Mapping) else None
        if (
            isinstance(size, list | tuple)
            and len(size) == 2
            and all(isinstance(extent, int) and extent > 0 for extent in size)
        ):
            return int(size[0]), int(size[1])
    return None


def _block(
    tensor: TensorSpec, scale: TensorSpec, stated: tuple[int, int] | None
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The scales' shape as a grid of blocks, and the rows and columns that one scale covers."""
    extents, shape = tensor.shape, scale.shape
    stack: tuple[int, ...] = ()
    if len(extents) == 3 and shape[:1] == extents[:1]:
        stack, extents, shape = extents[:1], extents[1:], shape[1:]
    if len(extents) != 2:
        raise _unusable(tensor, f"scales {list(scale.shape)} do not fit {list(tensor.shape)}")
    p, q = extents
    grid = {0: (1, 1), 1: (*shape, 1), 2: shape}.get(len(shape))
    blocks = [(p, q), *([stated] if stated else []), (1, q), (p, 1)]
    for rows, columns in blocks:
        if grid == (ceil_div(p, rows), ceil_div(q, columns)):
            return (*stack, *grid), (rows, columns)
    hint = f" in blocks of {list(stated)}" if stated else " (no weight_block_size is stated)"
    raise _unusable(tensor, f"scales {list(scale.shape)} do not fit {list(tensor.shape)}{hint}")


def _unusable(tensor: TensorSpec, reason: str) -> SourceError:
    return SourceError(
        f"the fp8 tensor {tensor.name!r} cannot be used: {reason}",
        location=tensor.shard or None,
        hint="start from the checkpoint in bf16, or from one with complete fp8 scales",
    )
