"""Types by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reallm_compiler.errors import EvaluationError
from reallm_compiler.runtime.dtypes import resolve_dtype


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("float32", torch.float32),
        ("torch.float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        ("source", None),
        ("auto", None),
        (None, None),
    ],
)
def test_types(given: Any, dtype: torch.dtype | None) -> None:
    assert resolve_dtype(given) == dtype


@pytest.mark.parametrize("given", ["int4", torch.int8, torch.float8_e4m3fn, 4])
def test_a_type_that_no_model_runs_in_is_refused(given: Any) -> None:
    with pytest.raises(EvaluationError, match="to run a model in"):
        resolve_dtype(given)
