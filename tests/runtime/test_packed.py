"""`load(mode="packed")`: the same model from the codes, on the file's own pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import EvaluationError, FormatError, SourceError
from reallm_compiler.finetune.store import write_adapter
from reallm_compiler.runtime.packed import PackedEmbedding, PackedLinear, packed_weights
from reallm_compiler.runtime.weight import PackedWeight
from tests.conftest import relative_difference

TOKENS = torch.arange(1, 25).view(2, 12)

transformers = pytest.importorskip("transformers")

RECIPE = {
    "reallm": 1,
    "seed": 3,
    "defaults": {
        "transform": [{"kind": "hadamard", "block": 16, "sides": "columns"}],
        "scales": {"kind": "rms", "per": "row"},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2, "iterations": 4},
    },
    "rules": [{"role": ["embedding", "head"], "set": {"quantizer": {"bits": 3}}}],
}


@pytest.fixture(scope="module")
def archive(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tied, coded head."""
    path = tmp_path_factory.mktemp("packed") / "tiny.reallm"
    reallm.compile(RECIPE, model=tiny_llama, output=path, workers=1)
    return path


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits  # type: ignore[no-any-return]


def test_the_same_logits_and_tokens(archive: Path) -> None:
    dense, tokenizer = reallm.load(archive, dtype="float32")
    packed, again = reallm.load(archive, mode="packed", dtype="float32")
    assert again.get_vocab() == tokenizer.get_vocab()
    for tokens in (TOKENS, TOKENS[:1, :1]):  # by panels, and by codes
        assert relative_difference(logits(packed, tokens), logits(dense, tokens)) < 5e-6
    prompt = TOKENS[:1, :4]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(packed.generate(prompt, **options), dense.generate(prompt, **options))
    assert all(weight.packed for weight in packed_weights(packed).values())
    assert not any(weight.requires_grad for weight in packed_weights(packed).values())


def test_embedding_and_tied_head_share_their_codes(archive: Path) -> None:
    model, _ = reallm.load(archive, mode="packed")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert isinstance(head, PackedLinear)
    assert embedding.weight is head.weight
    assert len(packed_weights(model)) == 1 + 14


def test_the_type_that_it_runs_in(archive: Path) -> None:
    model, _ = reallm.load(archive, mode="packed", dtype="float32")
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        assert logits(model).dtype == dtype
    dense, _ = reallm.load(archive, dtype="float32")
    assert relative_difference(logits(model), logits(dense)) < 1e-2  # norms went through bfloat16


def test_weights_lie_on_the_pages_of_the_file(archive: Path) -> None:
    """Nothing coded is copied, nor is what is kept in the type to run in."""
    model, _ = reallm.load(archive, mode="packed")
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(archive))
    ]
    for name, parameter in model.named_parameters():
        tensors = [parameter]
        if isinstance(parameter, PackedWeight):
            tensors = [one for piece in parameter.value.pieces for one in piece.sections]
        for tensor in tensors:
            assert any(low <= tensor.data_ptr() < high for low, high in spans), name


def test_an_adapter_in_use(archive: Path, tmp_path: Path) -> None:
    tunable = reallm.open_tunable(archive, dtype="float32", learn=("factors", "rows", "columns"))
    name, layer = next(iter(tunable.layers.items()))
    layer.set_parts(
        torch.randn(layer.out_features, 2),
        torch.randn(2, layer.in_features),
        torch.rand(layer.out_features) + 0.5,
        torch.rand(layer.in_features) + 0.5,
    )
    path = tmp_path / "a.reallm-adapter"
    with reallm.open(archive) as opened:
        tuned = {name: layer.parts()}
        write_adapter(path, opened, tuned, factors="int8", settings={}, provenance={})
    dense, _ = reallm.load(archive, dtype="float32", adapter=path)
    packed, _ = reallm.load(archive, mode="packed", dtype="float32", adapter=path)
    plain, _ = reallm.load(archive, dtype="float32")
    assert relative_difference(logits(packed), logits(dense)) < 1e-4
    assert relative_difference(logits(plain), logits(dense)) > 1e-2


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of 4 experts, 2 for each token, which its checkpoint stores one by one."""
    folder = tmp_path_factory.mktemp("experts")
    config = transformers.MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "source")
    path = folder / "experts.reallm"
    reallm.compile(RECIPE, model=folder / "source", output=path, workers=1)
    return path


def test_only_routed_experts_are_touched(experts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, _ = reallm.load(experts, dtype="float32")
    model, _ = reallm.load(experts, mode="packed", dtype="float32")
    kept: dict[Any, Any] = {}
    monkeypatch.setattr("reallm_compiler.runtime.ops._kept", kept)
    one = torch.tensor([[5]])
    assert relative_difference(logits(model, one), logits(dense, one)) < 1e-4
    # 4 matrices of attention, 2 of the 4 experts with 3 each, in 2 layers; embedding and head
    assert len(kept) == 2 * (4 + 2 * 3) + 2
    assert relative_difference(logits(model), logits(dense)) < 1e-4
    with torch.inference_mode():
        found = model(one).logits
    assert torch.equal(found, model(one).logits)


def test_damage_is_raised_by_a_later_call(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.reallm"
    data = bytearray(archive.read_bytes())
    with reallm.open(archive) as opened:
        codes = next(one for one in opened.sections_of(opened.names[3]) if "codes" in one.name)
    data[codes.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="digest differs"):
        reallm.load(path, mode="packed")

    def run() -> None:
        model, _ = reallm.load(path, mode="packed", verify="later")
        for _ in range(100):
            logits(model)

    with pytest.raises(FormatError, match="digest differs"):
        run()
    good, _ = reallm.load(archive, mode="packed", verify="later")
    for _ in range(100):
        logits(good)
        if not good._forward_pre_hooks:
            break
    assert not good._forward_pre_hooks


def test_what_cannot_run_packed(tiny_llama: Path, archive: Path) -> None:
    with pytest.raises(SourceError, match="only archives run packed"):
        reallm.load(tiny_llama, mode="packed")
    with pytest.raises(EvaluationError, match="no mode 'coded'"):
        reallm.load(archive, mode="coded")  # type: ignore[arg-type]


MEASURE = """
import json, sys
from pathlib import Path
import torch
import reallm_compiler as reallm

def pages(key, file=None):
    kind = "smaps_rollup" if file is None else "smaps"
    total, inside = 0, file is None
    for line in Path(f"/proc/self/{kind}").read_text().splitlines():
        if file is not None and "-" in line.split()[0]:
            inside = line.endswith(file)
        elif inside and line.startswith(key):
            total += int(line.split()[1]) << 10
    return total

def run(path):
    model, _ = reallm.load(path, mode="packed")
    with torch.no_grad():
        model(torch.arange(8)[None])
    return model

torch.set_num_threads(1)
path, small = sys.argv[1:]
run(small)  # what the libraries take
before = pages("Private_Dirty")
model = run(path)
print(json.dumps({
    "private": pages("Private_Dirty") - before,
    "written": pages("Private_Dirty", path),
    "shared": pages("Shared_Clean", path),
    "each": pages("Pss:", path),
}))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
def test_memory_is_that_of_the_file_and_shared(archive: Path, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    path = tmp_path / "large.reallm"
    recipe = {
        "reallm": 1,
        "defaults": {
            "scales": {"kind": "absmax", "per": "block", "block": 64, "dtype": "float16"},
            "quantizer": {"kind": "uniform", "bits": 8},
        },
    }
    reallm.compile(recipe, model=tmp_path / "source", output=path, workers=1)
    size = path.stat().st_size
    here, _ = reallm.load(path, mode="packed")
    logits(here, torch.arange(8)[None])
    command = [sys.executable, "-c", MEASURE, str(path), str(archive)]
    facts = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert facts["written"] < 1 << 16  # no page of the file was written to
    # Kernels and panels that products work in; the decoded weights would be twice the file.
    assert facts["private"] < 0.1 * size + (12 << 20)
    assert facts["shared"] > 0.9 * size
    assert facts["each"] < 0.6 * facts["shared"]  # the other half is this process's
