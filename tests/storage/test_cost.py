"""What coding takes beside copies of a matrix is counted once, on a CPU and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of

CODED = {
    "scales": {"kind": "absmax", "per": "block", "block": 16},
    "quantizer": {"kind": "uniform", "bits": 4},
}
SEARCHED: dict[str, dict[str, Any]] = {
    "clip": {
        "scales": {"kind": "minmax", "per": "block", "block": 16, "clip": "inputs"},
    },
    "channel scale": {"transform": [{"kind": "channel_scale", "alpha": "search"}]},
    "sparse": {"residual": [{"kind": "sparse", "fraction": "1/100", "by": "hessian"}]},
    "order": {"permutation": {"kind": "act_order"}},
}


@pytest.mark.parametrize("name", SEARCHED)
def test_what_works_on_either_device_is_no_block_of_a_gpu_beside_it(name: str) -> None:
    plan = MatrixPlan.model_validate({**CODED, **SEARCHED[name]})
    cost = layout_of(plan, (32, 64), "f32").cost
    assert cost.host_bytes > 0
    assert cost.device_bytes == 0
