"""The model in its parts is the loaded model, whatever its layers are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.runtime import TunedLinear, open_tunable
from reallm_compiler.runtime.mapped import Mode
from reallm_compiler.runtime.weight import PackedWeight
from tests.conftest import logits, relative_difference

RECIPE = {
    "reallm": 1,
    "defaults": {
        "residual": {"kind": "low_rank", "rank": 2},
        "scales": {"kind": "absmax", "per": "row"},
        "quantizer": {"kind": "uniform", "bits": 3},
        "dora": True,
    },
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2, whose linear layers are Conv1D, stored as [inputs, outputs]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_llama_in_parts(tiny_llama: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "llama.reallm"
    reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu", workers=1)
    tunable = open_tunable(path, dtype=torch.float32)
    assert len(tunable.layers) == 14
    assert tunable.untuned == ()
    with reallm.open(path) as archive:
        assert tuple(tunable.layers) == archive.names
        for name, layer in tunable.layers.items():
            whole = archive.matrix(name, dtype=torch.float32)
            assert torch.allclose(layer.weight, whole, atol=1e-6), name
    whole_model, _ = reallm.load(path, dtype=torch.float32)
    assert torch.allclose(logits(tunable.model), logits(whole_model), atol=1e-4)
    tuned = {name for name, value in tunable.model.named_parameters() if value.requires_grad}
    assert tuned == {
        f"{name}.{part}" for name in tunable.layers for part in ("l1", "l2", "magnitude")
    }


def test_over_packed_bases(
    tiny_llama: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coded parts stay packed: the same outputs, gradients and norms, and never decoded."""
    path = tmp_path / "llama.reallm"
    reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu", workers=1)
    learn = ("factors", "gains", "columns")
    dense = open_tunable(path, dtype=torch.float32, learn=learn)
    monkeypatch.setattr(PackedWeight, "dequantize", None)
    packed = open_tunable(path, mode="packed", dtype=torch.float32, learn=learn)
    gradients = []
    for tunable in (dense, packed):
        for index, (_, parameter) in enumerate(tunable.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.data += 0.01 * noise
        tokens = torch.arange(24)[None] + 3
        tunable.model(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append([value.grad for _, value in tunable.parameters()])
    assert relative_difference(logits(packed.model), logits(dense.model)) < 1e-4
    for found, wanted in zip(gradients[1], gradients[0], strict=True):
        assert relative_difference(found, wanted) < 1e-3
    for name, layer in packed.layers.items():
        assert isinstance(layer.coded, PackedWeight)
        assert layer.coded.packed
        for part, value in layer.parts().items():
            assert relative_difference(value, dense.layers[name].parts()[part]) < 1e-4, part
    packed.use(None)  # the archive's own parts again
    whole, _ = reallm.load(path, dtype=torch.float32)
    assert relative_difference(logits(packed.model), logits(whole)) < 1e-4


@pytest.mark.parametrize("mode", ["dense", "packed"])
def test_a_gpt2_in_parts(gpt2: Path, tmp_path: Path, mode: Mode) -> None:
    path = tmp_path / "gpt2.reallm"
    reallm.compile(RECIPE, model=gpt2, output=path, device="cpu", workers=1)
    tunable = open_tunable(path, mode=mode)
    assert len(tunable.layers) == 8
    assert isinstance(tunable.model.get_submodule("transformer.h.0.attn.c_attn"), TunedLinear)
    whole, _ = reallm.load(path)
    assert torch.allclose(logits(tunable.model), logits(whole), atol=1e-4)


def test_a_coded_tensor_that_is_no_linear_layer_is_whole(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpt2.reallm"
    recipe = {**RECIPE, "rules": [{"match": "*.wpe", "set": {"dora": True}}]}
    reallm.compile(recipe, model=gpt2, output=path, device="cpu", workers=1)
    tunable = open_tunable(path)
    assert [name.split(".")[-1] for name in tunable.untuned] == ["wpe"]
    whole, _ = reallm.load(path)
    assert torch.allclose(logits(tunable.model), logits(whole), atol=1e-4)


def test_blocks_that_share_their_weights_share_their_layers(tmp_path: Path) -> None:
    from transformers import Zamba2Config, Zamba2ForCausalLM

    config = Zamba2Config(  # type: ignore[call-arg]
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        mamba_d_state=8,
        mamba_headdim=16,
        n_mamba_heads=4,
        mamba_ngroups=1,
        layers_block_type=["mamba", "hybrid"] * 2,
        num_mem_blocks=1,
        chunk_size=8,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Zamba2ForCausalLM(config).save_pretrained(tmp_path / "zamba")
    path = tmp_path / "zamba.reallm"
    reallm.compile(RECIPE, model=tmp_path / "zamba", output=path, device="cpu", workers=1)
    tunable = open_tunable(path, dtype=torch.float32)
    one, other = (
        tunable.model.get_submodule(f"model.layers.{number}.shared_transformer.self_attn.q_proj")
        for number in (1, 3)
    )
    assert isinstance(one, TunedLinear)
    assert one is other
    whole, _ = reallm.load(path, dtype=torch.float32)
    assert torch.allclose(logits(tunable.model), logits(whole), atol=1e-5)
