"""Going on only with the same inputs: all fields that differ are named."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from reallm_compiler.errors import ResumeError
from reallm_compiler.runs.identity import TITLES, check_same, machine_fields

WANTED: dict[str, Any] = {
    "plan": "00",
    **machine_fields(torch.device("cpu")),
    "source": {"a.safetensors": (1, 2), "b.safetensors": (3, 4)},
}
FOUND: dict[str, Any] = {
    **WANTED,
    "source": {"a.safetensors": [1, 2], "b.safetensors": [3, 4]},
}


def test_tuples_come_back_as_lists_from_json() -> None:
    check_same(FOUND, WANTED, "o")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": "01"}, r"the recipe, or the model's tensors$"),
        ({"torch": "1.0"}, r"the version of torch \(`1.0` then, `.*` now\)$"),
        ({"source": {"a.safetensors": [1, 2]}}, r"files \(b.safetensors\)$"),
        ({"source": None, "plan": None}, r"tensors; .*files \(a.safetensors, b.safetensors\)$"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ResumeError) as caught:
        check_same({**FOUND, **change}, WANTED, "o")
    assert re.search(message, caught.value.message)
    assert caught.value.location == "o"


def test_every_field_has_a_title() -> None:
    assert set(WANTED) <= set(TITLES)
