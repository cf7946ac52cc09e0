"""Folded and rotated models: the same logits, plain folders, exact bytes, refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reallm_compiler as reallm
from reallm_compiler.errors import RecipeError, SourceError
from reallm_compiler.reader.reconstruct import reconstruct
from reallm_compiler.reader.verify import verify

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(1, 25).view(2, 12)
FOLD: list[dict[str, Any]] = [{"kind": "fold_norms"}]
ROTATE: list[dict[str, Any]] = [*FOLD, {"kind": "rotate", "seed": 3}]
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,  # 16 x 3, as no power of two divides most models
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, biases": (
        "Llama",
        {"tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True},
    ),
    "mistral": ("Mistral", {"head_dim": 20}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma, tied": ("Gemma", {"tie_word_embeddings": True, "head_dim": 16}),
    "phi3": ("Phi3", {}),
}


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random model whose norms and biases are not what they begin as."""
    name, settings = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **settings, **changes})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        for value in model.parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.3)
    model.to(dtype).save_pretrained(folder)
    return folder


def logits(folder: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        made: Tensor = model(TOKENS).logits
    return made


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("family", "prepare"),
    [("gemma, tied", FOLD), *((family, ROTATE) for family in FAMILIES)],
    ids=lambda one: one if isinstance(one, str) else one[-1]["kind"],
)
def test_an_unquantized_model_computes_what_the_original_does(
    family: str, prepare: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = save(tmp_path / "source", family)
    recipe = {"reallm": 1, "prepare": prepare}
    plan = reallm.plan(recipe, model=source)
    archive = tmp_path / "x.reallm"
    reallm.compile(recipe, model=source, output=archive, progress=False)
    assert archive.stat().st_size == plan.budget().totals.file_bytes
    verify(archive)
    with reallm.open(archive) as opened:
        assert opened.tensor("model.norm.weight").unique().numel() == 1
        query = next(name for name in opened.names if "layers.0.self_attn.q" in name)
        stored = opened.matrix(query)
    original = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert distance(stored, original[f"{query}.weight"]) > 0.1
    plain = reconstruct(archive, tmp_path / "plain", progress=False)
    assert distance(logits(plain), logits(source)) < 1e-5
    assert "lm_head.weight" in _tensors(plain)
    assert json.loads((plain / "config.json").read_text())["tie_word_embeddings"] is False


def _tensors(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    """Computed in float64 and stored in the tensor's type: no error beyond that type's own."""
    source = save(tmp_path / "source", "llama", torch.bfloat16)
    archive = tmp_path / "x.reallm"
    recipe = {"reallm": 1, "prepare": ROTATE}
    reallm.compile(recipe, model=source, output=archive, progress=False)
    with reallm.open(archive) as opened:
        assert opened.tensor("model.embed_tokens.weight").dtype == torch.bfloat16
    plain = reconstruct(archive, tmp_path / "plain", progress=False)
    assert distance(logits(plain), logits(source)) < 0.01


def test_the_untied_head_is_in_the_plan(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "qwen2, tied")
    plain = reallm.plan({"reallm": 1}, model=source).budget().totals
    plan = reallm.plan({"reallm": 1, "prepare": FOLD}, model=source)
    totals = plan.budget().totals
    assert totals.kept_bytes == plain.kept_bytes + 96 * 48 * 4
    assert totals.source_bytes - plain.source_bytes < 96  # the original has it once
    assert any("unties the head" in note for note in plan.notes)


def test_each_seed_is_another_rotation_and_one_seed_the_same_bytes(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    files = []
    for number, seed in enumerate((1, 1, 2)):
        recipe = {"reallm": 1, "prepare": [*FOLD, {"kind": "rotate", "seed": seed}]}
        reallm.compile(recipe, model=source, output=tmp_path / f"{number}", progress=False)
        files.append((tmp_path / f"{number}").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("Olmo2", "norms come after attention and MLP"),
        ("Gemma2", "norms come after attention and MLP"),
        ("GPTNeoX", "the graph is known of `llama`, `mistral`"),
    ],
)
def test_other_models_are_refused_by_name(model: str, reason: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{model}Config")(**SMALL)
    config.architectures = [f"{model}ForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(SourceError) as caught:
        reallm.plan({"reallm": 1, "prepare": ROTATE}, model=tmp_path)
    assert config.model_type in caught.value.message
    assert reason in str(caught.value.note)


def test_a_tensor_without_a_part_in_the_graph_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = save(tmp_path / "source", "llama")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.adapter.weight"] = torch.ones(4, 48)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(SourceError, match=r"`model.layers.0.adapter.weight` has no part"):
        reallm.plan({"reallm": 1, "prepare": FOLD}, model=source)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ([{"kind": "rotate"}], "`rotate` needs `fold_norms` before it"),
        ([*FOLD, *FOLD], "can stand in the list once"),
        ([{"kind": "fold"}], "no kind `fold`"),
        ([*FOLD, {"kind": "rotate", "head": True}], "did you mean `heads`"),
        ({"kind": "fold_norms"}, "expected a list"),
    ],
)
def test_what_does_not_make_sense_is_refused(prepare: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        reallm.plan({"reallm": 1, "prepare": prepare}, model={"shapes": {"a": [2, 2]}})
    assert message in str(caught.value)
