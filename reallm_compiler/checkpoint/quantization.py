"""What a config says about how its weights are stored: quantized, and in which file.

A statement of quantization may stand in the config itself or in a config inside it
(`text_config`, `vision_config`, ...). fp8 with scales is read (`scales.py`); every other method,
and fp8 with a part that would be lost (rotations of the activations, zero points, sparse codes),
is refused: the weights alone would be another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reallm_compiler.errors import SourceError

WEIGHTS_FILE = "transformers_weights"
"""The key of a config that names the file of the weights."""

_STATEMENTS = ("quantization_config", "compression_config", "quantization")
_READABLE = frozenset({"fp8", "fbgemm_fp8"})
_ONLINE = ("transform_config", "rotation_config")


def statements(config: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, statement) of every statement of quantization, in the config or inside it."""
    waiting: list[tuple[str, Any]] = [("", config or {})]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, list):
            waiting += ((f"{path}{index}.", value) for index, value in enumerate(part))
        elif isinstance(part, Mapping):
            for key, value in part.items():
                if key in _STATEMENTS and isinstance(value, Mapping):
                    yield f"{path}{key}", value
                else:
                    waiting.append((f"{path}{key}.", value))


def without_storage(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the plain model: without quantization and the file of the weights."""
    found: dict[str, Any] = _without((*_STATEMENTS, WEIGHTS_FILE), config)
    return found


def _without(keys: tuple[str, ...], part: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(part, Mapping):
        return {key: _without(keys, value) for key, value in part.items() if key not in keys}
    if isinstance(part, list):
        return [_without(keys, value) for value in part]
    return part


def states_storage(config: Mapping[str, Any] | None) -> bool:
    """Whether `without_storage` would leave out something that is said."""
    named = (config or {}).get(WEIGHTS_FILE) is not None
    return named or next(statements(config), None) is not None


def refuse_stated(config: Mapping[str, Any] | None) -> None:
    """Refuses a config whose weights are quantized by a method that is not read.

    Raises:
        SourceError: with the path of the key in the config.
    """
    for path, stated in statements(config):
        location = f"config.json: {path}"
        if not _is_fp8(stated):
            raise already_quantized(_method(path, stated), location)
        lost = _lost_part(stated)
        if lost:
            raise _not_in_the_weights(lost, f"{location}.{lost}")
    for key in _ONLINE:
        if (config or {}).get(key):
            raise _not_in_the_weights(key, f"config.json: {key}")


def already_quantized(method: str, location: str) -> SourceError:
    """The error for a checkpoint that holds the codes of another method."""
    return SourceError(
        f"the checkpoint is quantized already ({method})",
        location=location,
        note="quantizing it again would only add error",
        hint="start from the full-precision checkpoint that it was made from",
    )


def _method(path: str, stated: Mapping[str, Any]) -> str:
    if path.endswith("quantization"):
        return "MLX"
    names = (stated.get(key) for key in ("quant_method", "quant_algo"))
    return next((str(name)[:60] for name in names if name), "unknown method")


def _is_fp8(stated: Mapping[str, Any]) -> bool:
    """Whether the weights are 8-bit floats with scales, as `scales.py` reads them."""
    method = str(stated.get("quant_method") or stated.get("quant_algo") or "").lower()
    if method in _READABLE:
        return True
    if method == "modelopt":
        return str(stated.get("quant_algo", "")).upper() == "FP8"
    groups = stated.get("config_groups")
    if method != "compressed-tensors" or not isinstance(groups, Mapping):
        return False
    weights = [g.get("weights") if isinstance(g, Mapping) else None for g in groups.values()]
    return bool(weights) and all(
        isinstance(w, Mapping) and w.get("type") == "float" and w.get("num_bits") == 8
        for w in weights
    )


def _lost_part(stated: Mapping[str, Any]) -> str | None:
    """The key of an fp8 statement that says more than scales could make good, or None."""
    for key, value in stated.items():
        if value and (key in _ONLINE or "hadamard" in str(key)):
            return str(key)
    sparse = stated.get("sparsity_config")
    if isinstance(sparse, Mapping) and sparse.get("format") not in (None, "dense"):
        return "sparsity_config"
    groups = stated.get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("symmetric") is False:
            return f"config_groups.{name}.weights.symmetric"
    return None


def _not_in_the_weights(key: str, location: str) -> SourceError:
    return SourceError(
        f"the checkpoint needs more than its weights while it runs ({key})",
        location=location,
        note="an archive holds weights: without this part it would be another model",
        hint="start from the full-precision checkpoint that it was made from",
    )
