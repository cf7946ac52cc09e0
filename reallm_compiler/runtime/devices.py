"""Devices and types as users name them, checked before any work is done for them."""

from __future__ import annotations

import torch

from reallm_compiler.errors import EvaluationError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""Types that a model can run in, by name."""
STORED = ("source", "auto")
"""Names of the type that the checkpoint has."""


def resolve_device(device: str | torch.device) -> str:
    """The device meant by `device`; `auto` is cuda where there is one, else the CPU.

    Raises:
        EvaluationError: there is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    hint = "devices are auto, cpu and cuda"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise EvaluationError(f"there is no device {device!r}", hint=hint) from None
    if found.type == "cpu":
        return str(found)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise EvaluationError("there is no cuda device here", hint="use the device cpu or auto")
    try:
        if found.type == "meta":  # it would swallow every weight
            raise RuntimeError("it keeps no weights")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EvaluationError(
            f"there is no device {str(found)!r} here", note=first, hint=hint
        ) from error
    return str(found)


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The type to run a model in; None for the stored one.

    Args:
        dtype: torch's type, its name, or one of `STORED`.

    Raises:
        EvaluationError: there is no such type, or no model runs in it.
    """
    if dtype is None or dtype in STORED:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise EvaluationError(
            f"there is no type {name!r} to run a model in",
            hint=f"types are {', '.join(DTYPES)}, and source for the stored one",
        )
    return DTYPES[name]
