"""fp8 weights with their scales, which are read as ordinary weights.

An fp8 weight with a companion tensor of scales stands for `stored x scale`, per tensor, per row
or per block. Such a weight is listed with the type that it has after scaling, with its scales
attached, so everything later sees ordinary weights. The scales themselves, and the scales of
activations that only fp8 arithmetic would need, are taken off the list.

An fp8 tensor without scales holds plain numbers and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from reallm_compiler.checkpoint.quantization import statements
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import ScaleSpec, TensorSpec
from reallm_compiler.units import ceil_div

_SUFFIXES = ("_scale_inv", "_scale")
_ACTIVATIONS = ("input_scale", "activation_scale", "input_global_scale", "output_scale")
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
            name = part.get(key)
            if isinstance(name, str) and name.removeprefix("torch.") in _TYPES:
                return _TYPES[name.removeprefix("torch.")]
    return None


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
    stated = [statement for _, statement in statements(config)]
    block = _stated_block(stated)
    dtype = config_dtype(config) or "bf16"
    scaled: dict[str, TensorSpec] = {}
    used: set[str] = set()
    for tensor in by_name.values():
        if tensor.dtype not in _FP8:
            continue
        names = [tensor.name + suffix for suffix in _SUFFIXES if tensor.name + suffix in by_name]
        if not names:
            if stated and len(tensor.shape) > 1:
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
        used.update(module + name for name in _ACTIVATIONS)
    kept = [scaled.get(name, tensor) for name, tensor in by_name.items() if name not in used]
    return kept, len(scaled)


def _stated_block(stated: Iterable[Mapping[str, Any]]) -> tuple[int, int] | None:
    """The block that one scale covers, where a statement gives one."""
    for statement in stated:
        groups = statement.get("config_groups")
        parts = groups.values() if isinstance(groups, Mapping) else ()
        weights = (part.get("weights") for part in parts if isinstance(part, Mapping))
        sizes = [w.get("block_structure") for w in weights if isinstance(w, Mapping)]
        for size in (statement.get("weight_block_size"), *sizes):
            if (
                isinstance(size, list | tuple)
                and len(size) == 2
                and all(type(extent) is int and extent > 0 for extent in size)
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
