"""The type that a user names to run a model in, checked before any work is done for it."""

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
