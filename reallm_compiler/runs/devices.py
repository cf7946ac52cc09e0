"""The device that a user names, checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Collection

import torch

from reallm_compiler.errors import ReallmError

HINT = "use `auto`, `cpu`, `cuda` or `cuda:1`"


def choose_device(
    name: str | torch.device,
    error: type[ReallmError],
    *,
    types: Collection[str] | None = None,
) -> torch.device:
    """The device of a name; `auto` is cuda where there is one, else the CPU.

    Args:
        name: `auto`, or a device as torch names it.
        error: the class of the error.
        types: the device types that are supported; any when None.

    Raises:
        ReallmError: of class `error`; it is no device, is not supported, or is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise error(f"`{name}` is not a device", hint=HINT) from None
    if device.type == "cpu":
        return device
    # A tensor on `meta` has no values.
    if device.type == "meta" or (types is not None and device.type not in types):
        raise error(f"the device `{name}` is not supported", hint=HINT)
    if device.type == "cuda":
        _check_cuda(device, error)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as refusal:
        first = (str(refusal).strip().splitlines() or [type(refusal).__name__])[0]
        raise error(f"the device `{name}` cannot be used", note=first, hint=HINT) from refusal
    return device


def _check_cuda(device: torch.device, error: type[ReallmError]) -> None:
    if not torch.cuda.is_available():
        raise error(
            f"`{device}` was asked for and this machine has no usable CUDA device",
            note="torch reports no CUDA device (driver missing, or a CPU build of torch)",
            hint="use the device `cpu`, or install a CUDA build of torch",
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise error(
            f"the device `{device}` does not exist: this machine has {count} CUDA devices",
            hint=HINT,
        )


def device_title(device: torch.device) -> str:
    """Name for people: `cpu`, or that of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
