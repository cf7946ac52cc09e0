"""Signs of packed codes among the tensors of a checkpoint, whatever its config says.

Many tools leave no word in the config, so the tensors decide. A checkpoint is refused when

- a tensor has a name that only a quantization method gives (`qweight`, `weight._data`, ...);
- a tensor named like a weight holds integers;
- integers, or 8-bit floats, lie beside scales or zero points of their own;
- floats have scales under the weight's own name (`X.weight` and `X.weight_scale`).

What is left over as integers are buffers: positions, masks, tables of indices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from reallm_compiler.checkpoint.experts import is_expert_weight
from reallm_compiler.checkpoint.headers import FLOATS
from reallm_compiler.checkpoint.quantization import already_quantized
from reallm_compiler.tensors import TensorSpec

_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("GPTQ or AWQ", re.compile(r"qweight|qzeros|g_idx")),
    ("compressed-tensors", re.compile(r".*weight_packed|bitmask")),
    ("MXFP4", re.compile(r"(gate_up|gate|up|down)_proj_blocks")),
    ("bitsandbytes", re.compile(r"(nested_)?absmax|(nested_)?quant_map|bitsandbytes__.*|SCB")),
    ("quanto", re.compile(r"_data|_shift")),
    ("torchao", re.compile(r".*qdata")),
    ("HQQ", re.compile(r"W_q")),
    ("AQLM", re.compile(r"codebooks")),
    ("SpQR", re.compile(r"dense_weights")),
    ("SqueezeLLM", re.compile(r"lookup_table")),
    ("QuIP#", re.compile(r"Qidxs")),
    ("QTIP or EXL3", re.compile(r"trellis")),
    ("EXL2", re.compile(r"q_weight|q_invperm")),
    ("NVFP4", re.compile(r".*weight_scale_2")),
)
"""Words for the last part of a name, whatever the tensor's type."""

_WEIGHT = re.compile(r"(.*_)?weights?")
_COMPANION = re.compile(r"(.*_)?(scales?|scale_inv|zeros?|zero_points?|absmax|codebooks?)")
_OWN = ("_scale", "_scale_inv", "_scales", "_zero_point", "_zeros", "._scale", ".scale")
_FP8 = frozenset({"f8_e4m3", "f8_e5m2"})
_INTEGERS = frozenset({"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"})


def refuse_packed(tensors: Iterable[TensorSpec]) -> None:
    """Refuses a checkpoint whose tensors are packed codes of another method.

    Args:
        tensors: the checkpoint's, those with scales attached (`scales.py`) among them.

    Raises:
        SourceError: names the tensor, and the method where its name gives it away.
    """
    found = list(tensors)
    names = {tensor.name for tensor in found}
    scaled_modules = {
        module
        for module, _, last in (name.rpartition(".") for name in names)
        if _COMPANION.fullmatch(last)
    }
    for tensor in found:
        method = _method(tensor, names, scaled_modules)
        if method is not None:
            raise already_quantized(method, f"{tensor.shard}: {tensor.name}")


@lru_cache(1024)
def _method_of_name(last: str) -> str | None:
    return next((method for method, pattern in _NAMES if pattern.fullmatch(last)), None)


def _method(tensor: TensorSpec, names: set[str], scaled_modules: set[str]) -> str | None:
    module, _, last = tensor.name.rpartition(".")
    named = _method_of_name(last)
    if named is not None:
        return named
    if tensor.scale is not None:
        return None
    if len(tensor.shape) < 2 and tensor.dtype not in _INTEGERS:
        return None
    if tensor.dtype not in _INTEGERS and not scaled_modules:
        return None
    weight = _WEIGHT.fullmatch(last) is not None or is_expert_weight(tensor.name)
    if tensor.dtype in _INTEGERS:
        beside = tensor.dtype != "i64" and len(tensor.shape) > 1 and module in scaled_modules
        if not weight and not beside:
            return None
        packed = tensor.dtype == "u32" and f"{module}.scales" in names
        return "MLX" if packed else f"{tensor.dtype} codes instead of weights"
    if tensor.dtype in _FP8 and module in scaled_modules:
        return "fp8 with scales under names that are not read"
    if tensor.dtype in FLOATS and weight and not scaled_modules.isdisjoint((module, tensor.name)):
        own = [tensor.name + suffix for suffix in _OWN if tensor.name + suffix in names]
        return f"{own[0]} scales it" if own else None
    return None
