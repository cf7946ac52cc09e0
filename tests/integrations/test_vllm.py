"""vLLM on the CPU: the greedy tokens of transformers, from codes and decoded (`make vllm`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.integrations.export import export
from reallm_compiler.kernels.packed import PackedForm
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm", reason="vLLM is not installed (`make vllm` installs it)")

SCRIPT = Path(__file__).parent / "vllm_greedy.py"
TOKENS = 16
PROMPTS = ([5, 17, 40, 99], [7], [120, 3, 3, 64, 200, 11, 90])

RECIPES = {
    "untied": "reallm: 1\nextends: reallm-2bit-data-free\n"
    "defaults: {quantizer: {paths: 4, iterations: 2}}\n",
    "tied": "reallm: 1\nextends: paper-2bit\n",
}
"""By whether the head is the embedding: trellis codes, vectors. Embeddings are coded in both."""


def write_llama(tiny_llama: Path, folder: Path, *, tied: bool) -> None:
    """A random Llama with heads of 64, which vLLM has kernels for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny_llama, folder)
    config = LlamaConfig.from_pretrained(tiny_llama)
    config.update(
        {
            "hidden_size": 256,
            "intermediate_size": 384,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "tie_word_embeddings": tied,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_greedy_tokens_are_those_of_transformers(
    recipe: str, tiny_llama: Path, tmp_path: Path
) -> None:
    names = ("llama", "recipe.yaml", "a.reallm", "folder")
    llama, path, archive, folder = (tmp_path / name for name in names)
    write_llama(tiny_llama, llama, tied=recipe == "tied")
    path.write_text(RECIPES[recipe])
    reallm.compile(path, model=llama, output=archive, progress=False)
    export(archive, folder, to="hf", progress=False)
    model, _ = reallm.load(archive, dtype="float32")
    wanted = []
    for prompt in PROMPTS:
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
        )
        wanted.append(made[0, len(prompt) :].tolist())
    assert len(set(map(tuple, wanted))) == len(PROMPTS)
    for method, mode in (("reallm", "eager"), ("reallm", "compiled"), ("reallm-decoded", "eager")):
        assert vllm_tokens(folder, method, mode, tmp_path / mode) == wanted, (method, mode)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
@pytest.mark.parametrize(("columns", "rows"), [(64, [96]), (128, [48])], ids=["columns", "rows"])
def test_packed_matrices_are_not_divided_among_devices(columns: int, rows: list[int]) -> None:
    """What a layer is asked for where tensor parallelism gives it a half."""
    from reallm_compiler.integrations.vllm_plugin import PackedLinear

    plan = MatrixPlan.model_validate({"quantizer": {"kind": "vq", "bits": 2, "dim": 4}})
    form = PackedForm(layout=layout_of(plan, (96, 128), "bf16"))
    method = PackedLinear("model.layers.0.mlp.down_proj", [form.text])
    whole = torch.nn.Module()
    method.create_weights(whole, 128, [96], 128, 96, torch.bfloat16)
    assert "weight" in dict(whole.named_parameters())
    with pytest.raises(ValueError, match=r"down_proj: .*tensor parallelism.*reallm-decoded"):
        method.create_weights(torch.nn.Module(), columns, rows, 128, 96, torch.bfloat16)


def vllm_tokens(folder: Path, method: str, mode: str, output: Path) -> list[list[int]]:
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    given = [folder, method, mode, TOKENS, json.dumps(PROMPTS), output]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | settings,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found: list[list[int]] = json.loads(output.read_text())
    return found
