"""The table of docs/running.md says where each shipped recipe runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import reallm_compiler as reallm
from benchmarks.random_sections import random_matrix
from benchmarks.running import LLAMA, by_kernel, place
from reallm_compiler.kernels import jit
from reallm_compiler.kernels.packed import PackedForm, check_packed
from reallm_compiler.recipe.shipped import list_shipped

PAGE = Path(__file__).parents[2] / "docs" / "running.md"
ROW = re.compile(r"^\| `([\w.-]+)` \|[^|]*\| (\w+) \|[^|]*\|[^|]*\| (\w+) \|$", re.MULTILINE)


@pytest.mark.skipif(not jit.targets(), reason="there is no kernel for this processor")
def test_the_page_says_where_recipes_run(tmp_path: Path) -> None:
    config = LLAMA | {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    written = {name: (on_cpu, on_cuda) for name, on_cpu, on_cuda in ROW.findall(PAGE.read_text())}
    found = {}
    for name in list_shipped():
        plan = reallm.plan(name, model=tmp_path / "config.json")
        layout = plan.by_name["model.layers.0.self_attn.q_proj"].layout
        packed = random_matrix(PackedForm(layout=layout))
        check_packed(packed)
        found[name] = tuple(place([by_kernel(packed, device)]) for device in ("cpu", "cuda"))
    assert found == written
