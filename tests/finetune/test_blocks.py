"""Blocks run one by one compute what the model computes, or the model is refused before any work.

Each architecture hands its blocks something else beside hidden states: alone, from the tokens, for
each sequence and head, from an earlier block.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import reallm_compiler as reallm
from reallm_compiler.errors import FinetuneError
from reallm_compiler.finetune import Started, TensorsRead, finetune
from reallm_compiler.models.blocks import (
    Block,
    UnfitBlocksError,
    calls_of,
    hidden_states,
    run_block,
)
from tests.conftest import copy_tokenizer

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GEMMA = {
    **SIZES,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 8,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
}
MAMBA = {
    **SIZES,
    "num_key_value_heads": 4,
    "mamba_d_state": 8,
    "mamba_headdim": 16,
    "n_mamba_heads": 4,
    "mamba_ngroups": 1,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "chunk_size": 8,
}
BLOOM = {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

FIT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "bloom: a bias for each sequence and head": ("Bloom", BLOOM),
    "gpt2: a tuple of outputs": ("GPT2", {**GPT2, "bos_token_id": 0, "eos_token_id": 1}),
    "gemma3: masks and positions by kind": (
        "Gemma3",
        {key: value for key, value in GEMMA.items() if "per_layer" not in key},
    ),
    "gemma4: embeddings of the tokens": (
        "Gemma4",
        {**GEMMA, "global_head_dim": 8, "num_kv_shared_layers": 0},
    ),
    "zamba2: the first hidden states": ("Zamba2", {**MAMBA, "num_mem_blocks": 2}),
}
UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma4: keys of an earlier block": (
        "Gemma4",
        {**GEMMA, "global_head_dim": 8, "num_kv_shared_layers": 2},
        "what an earlier block computed",
    ),
    "gemma3n: four hidden states at once": (
        "Gemma3n",
        {
            **GEMMA,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 4,
        },
        "hidden states before and after it are",
    ),
}


def config_class(name: str) -> Any:
    text = f"{name}TextConfig"
    return getattr(transformers, text if hasattr(transformers, text) else f"{name}Config")


def make(name: str, settings: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [f"{name}ForCausalLM", f"{name}LMHeadModel"]
        causal = next(getattr(transformers, one) for one in found if hasattr(transformers, one))
        model = causal(config_class(name)(**settings))
    return model.eval().requires_grad_(False)


def blocks_of(model: Any) -> list[Block]:
    body = model.get_submodule(model.base_model_prefix)
    layers = body.h if hasattr(body, "h") else body.layers
    return [Block(f"layers.{number}", module, {}) for number, module in enumerate(layers)]


def tokens(seed: int, count: int) -> torch.Tensor:
    return torch.randint(3, 300, (count, 12), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "settings"), FIT.values(), ids=FIT)
def test_other_sequences_get_arguments_of_their_own(name: str, settings: dict) -> None:
    model = make(name, settings)
    blocks = blocks_of(model)
    calls = calls_of(model, blocks, tokens(1, 2))
    true: list[torch.Tensor] = []
    hooks = [
        block.module.register_forward_hook(
            lambda module, args, output: true.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        for block in blocks
    ]
    ids = tokens(2, 3)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        state = hidden_states(model, blocks[0].module, ids)
        for number, (block, wanted) in enumerate(zip(blocks, true, strict=True)):
            state = run_block(block.module, state, calls.of(number, ids))
            assert torch.allclose(state, wanted, atol=1e-5), number
    assert all("forward" not in vars(block.module) for block in blocks)


@pytest.mark.parametrize(("name", "settings", "message"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_run_one_by_one_is_refused(name: str, settings: dict, message: str) -> None:
    model = make(name, settings)
    with pytest.raises(UnfitBlocksError, match="cannot be run one by one") as caught:
        calls_of(model, blocks_of(model), tokens(1, 2))
    assert message in str(caught.value.note)


class Odd(nn.Module):
    """A model of two linear blocks that does with them what a case asks for."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.embed = nn.Embedding(320, 8)
        self.layers = nn.ModuleList(Leaky(case) for _ in range(2))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        hidden = self.embed(input_ids)
        first, second = self.layers
        left: list[torch.Tensor] = []
        hidden = first(hidden, left)
        if self.case == "changes between blocks":
            hidden = hidden + self.embed(input_ids)
        if self.case == "calls a block twice":
            hidden = first(hidden, left)
        return second(hidden, left)


class Leaky(nn.Module):
    """A block that may leave something for the next one, outside of its output."""

    kept = torch.zeros(())

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, left: list[torch.Tensor]) -> torch.Tensor:
        output = self.linear(hidden)
        if self.case == "leaves a sum in an argument":
            output = output + sum(left)
            left.append(output)
        if self.case == "leaves its output in the class":
            output, Leaky.kept = output + Leaky.kept, output
        return output


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("changes between blocks", "not the output of the block before"),
        ("calls a block twice", "once and in order"),
        ("leaves a sum in an argument", "other values than in the model"),
        ("leaves its output in the class", "other values than in the model"),
    ],
)
def test_a_model_of_another_kind_is_noticed(case: str, message: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Odd(case)
    Leaky.kept = torch.zeros(())
    with pytest.raises(UnfitBlocksError) as caught:
        calls_of(model, blocks_of_odd(model), tokens(1, 2))
    assert message in str(caught.value.note)
    plain = Odd("")
    calls_of(plain, blocks_of_odd(plain), tokens(1, 2))


def blocks_of_odd(model: Odd) -> list[Block]:
    return [Block(f"layers.{number}", layer, {}) for number, layer in enumerate(model.layers)]


@pytest.fixture
def saved(tiny_llama: Any, tmp_path: Any) -> Any:
    """Saves a model with the tokenizer of the tiny Llama, and compiles it."""

    def save(name: str, settings: dict[str, Any]) -> tuple[Any, Any]:
        folder = tmp_path / "model"
        make(name, settings).save_pretrained(folder)
        copy_tokenizer(tiny_llama, folder)
        recipe = {
            "reallm": 1,
            "defaults": {
                "residual": {"kind": "low_rank", "rank": 2},
                "scales": {"kind": "absmax", "per": "row"},
                "quantizer": {"kind": "uniform", "bits": 2},
            },
        }
        path = tmp_path / "model.reallm"
        reallm.compile(recipe, model=folder, output=path, device="cpu", workers=1)
        return path, folder

    return save


@pytest.mark.parametrize(
    "name", ["bloom: a bias for each sequence and head", "gemma4: embeddings of the tokens"]
)
def test_blocks_of_other_architectures_are_tuned(
    saved: Any, prose: Any, options: dict, tmp_path: Any, name: str
) -> None:
    archive, folder = saved(*FIT[name])
    report = finetune(
        archive,
        model=folder,
        text=[prose],
        output=tmp_path / "a",
        options={**options, "stages": ["block"]},
    )
    assert all(row.after < row.before for row in report.blocks)


def test_a_refusal_comes_before_any_work(
    saved: Any, prose: Any, options: dict, tmp_path: Any
) -> None:
    name, settings, message = UNFIT["gemma4: keys of an earlier block"]
    archive, folder = saved(name, settings)
    given = {"model": folder, "text": [prose], "output": tmp_path / "a"}
    events: list[Any] = []
    with pytest.raises(FinetuneError, match="cannot be tuned one by one") as caught:
        finetune(archive, **given, options=options, on_event=events.append)
    assert message in str(caught.value.note)
    assert "--stage e2e" in str(caught.value.hint)
    done = [event for event in events if not isinstance(event, TensorsRead)]
    assert [type(event) for event in done] == [Started]
    report = finetune(archive, **given, options={**options, "stages": ["e2e"]})
    assert report.after < report.before


def test_a_block_that_the_checkpoint_stores_otherwise_is_refused(
    saved: Any, prose: Any, options: dict, tmp_path: Any
) -> None:
    archive, folder = saved("Llama", SIZES)
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    norm = "model.layers.3.input_layernorm.weight"
    tensors["model.layers.3.renamed.weight"] = tensors.pop(norm)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    events: list[Any] = []
    with pytest.raises(FinetuneError, match="has no tensor"):
        finetune(
            archive,
            model=folder,
            text=[prose],
            output=tmp_path / "a",
            options=options,
            on_event=events.append,
        )
