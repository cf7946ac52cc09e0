"""Other architectures by name rules alone: tiny random models, coded, rebuilt, compared.

Each model is made from its transformers config and saved as its library saves it. Of each the
same is asked: the plan's bytes are the file's bytes and add up; the archive is intact; the folder
that `reconstruct` writes and the model that `load` gives compute the same logits, and so does the
packed one, all of whose matrices stay in their codes; and with nothing coded (quantizer `none` in
the source's type) they are the original's, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler.reader.reconstruct import reconstruct
from reallm_compiler.reader.verify import verify
from reallm_compiler.runtime.packed import packed_weights

transformers = pytest.importorskip("transformers")

VOCABULARY = 96
TOKENS = torch.arange(1, 25).view(2, 12)

EXACT = {"reallm": 1}
"""Nothing is coded: every matrix is stored as it is."""

CODED = {
    "reallm": 1,
    "seed": 5,
    "defaults": {
        "residual": {"kind": "low_rank", "rank": 2},
        "permutation": {"kind": "nearest", "rows": 16},
        "scales": {"kind": "absmax", "per": "block", "block": 16, "bits": 8, "superblock": 16},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2, "iterations": 4},
        "dora": True,
    },
}

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    Attributes:
        model, config: class names of transformers.
        settings: of the config.
        dtype: element type of the checkpoint.
        shards: `max_shard_size` of the checkpoint, or None for one file.
        matrices: number of matrices that are coded by default.
        transposed: number of those that the checkpoint stores as [in, out].
        ties: names that the archive stores under another name.
    """

    model: str
    config: str
    settings: dict[str, Any] = field(default_factory=lambda: SMALL)
    dtype: torch.dtype = torch.bfloat16
    shards: str | None = None
    matrices: int
    transposed: int = 0
    ties: tuple[str, ...] = ()


def small(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(model="LlamaForCausalLM", config="LlamaConfig", matrices=14),
    "llama, tied, fp16": Family(
        model="LlamaForCausalLM",
        config="LlamaConfig",
        settings=small(tie_word_embeddings=True, mlp_bias=True),
        dtype=torch.float16,
        matrices=14,
        ties=("lm_head.weight",),
    ),
    "mistral, fp32, shards": Family(
        model="MistralForCausalLM",
        config="MistralConfig",
        dtype=torch.float32,
        shards="20KB",
        matrices=14,
    ),
    "qwen2 (biases)": Family(
        model="Qwen2ForCausalLM",
        config="Qwen2Config",
        settings=small(tie_word_embeddings=True),
        matrices=14,
        ties=("lm_head.weight",),
    ),
    "qwen3 (norms of q and k)": Family(
        model="Qwen3ForCausalLM", config="Qwen3Config", settings=small(head_dim=8), matrices=14
    ),
    "gemma": Family(
        model="GemmaForCausalLM",
        config="GemmaConfig",
        settings=small(head_dim=8),
        matrices=14,
        ties=("lm_head.weight",),
    ),
    "gemma 3, shards": Family(
        model="Gemma3ForCausalLM",
        config="Gemma3TextConfig",
        settings=small(head_dim=8, sliding_window=8),
        shards="15KB",
        matrices=14,
        ties=("lm_head.weight",),
    ),
    "gpt-neox (fused qkv)": Family(
        model="GPTNeoXForCausalLM",
        config="GPTNeoXConfig",
        settings=small(num_key_value_heads=4),
        dtype=torch.float16,
        matrices=8,
    ),
    "opt (projections in and out)": Family(
        model="OPTForCausalLM",
        config="OPTConfig",
        settings={
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 24,
            "do_layer_norm_before": False,
        },
        dtype=torch.float16,
        matrices=14,
        ties=("lm_head.weight",),
    ),
    "gpt-2 (transposed)": Family(
        model="GPT2LMHeadModel",
        config="GPT2Config",
        settings=GPT2,
        dtype=torch.float32,
        matrices=8,
        transposed=8,
        ties=("lm_head.weight",),
    ),
    "phi-3 (fused qkv, gate and up)": Family(
        model="Phi3ForCausalLM", config="Phi3Config", matrices=8
    ),
    "mixtral (experts)": Family(
        model="MixtralForCausalLM",
        config="MixtralConfig",
        settings=small(num_hidden_layers=1, num_local_experts=4, num_experts_per_tok=2),
        matrices=4 + 12,
    ),
    "qwen3-moe (experts), shards": Family(
        model="Qwen3MoeForCausalLM",
        config="Qwen3MoeConfig",
        settings=small(
            num_hidden_layers=1,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            decoder_sparse_step=1,
            head_dim=8,
        ),
        shards="20KB",
        matrices=4 + 12,
    ),
    "gpt-oss (experts in 3-D, transposed)": Family(
        model="GptOssForCausalLM",
        config="GptOssConfig",
        settings=small(
            num_hidden_layers=1,
            num_local_experts=4,
            num_experts_per_tok=2,
            head_dim=8,
            sliding_window=8,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        matrices=4 + 8,
        transposed=8,
    ),
}


def noisy(model: Any) -> None:
    """Every parameter moves: norms and biases that begin as ones and zeros could not be lost."""
    for index, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(parameter.shape, generator=generator) * 0.05
        parameter.data.add_(noise.to(parameter.dtype))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    assert torch.isfinite(found).all()
    return found


def from_folder(family: Family, folder: Path) -> Any:
    architecture = getattr(transformers, family.model)
    model, info = architecture.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, nothing left over
    return model


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint of a family and the logits of its model."""

    family: Family
    folder: Path
    logits: torch.Tensor


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    family: Family = request.param
    folder = tmp_path_factory.mktemp("family") / "model"
    config = getattr(transformers, family.config)(**family.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, family.model)(config).to(family.dtype)
    noisy(model)
    options = {"max_shard_size": family.shards} if family.shards else {}
    model.save_pretrained(folder, **options)
    several = len(list(folder.glob("*.safetensors"))) > 1
    assert several == (family.shards is not None)
    return Made(family=family, folder=folder, logits=logits(from_folder(family, folder)))


@pytest.mark.parametrize("recipe", [EXACT, CODED], ids=["exact", "coded"])
def test_there_and_back(made: Made, tmp_path: Path, recipe: dict[str, Any]) -> None:
    path = tmp_path / "out.reallm"
    family = made.family
    plan = reallm.plan(recipe, model=made.folder)
    assert len(plan.matrices) == family.matrices
    assert sum(matrix.transposed for matrix in plan.matrices) == family.transposed
    assert tuple(plan.ties) == family.ties

    reallm.compile(recipe, model=made.folder, output=path, device="cpu", workers=1)
    totals = plan.budget().totals
    assert totals.file_bytes == path.stat().st_size
    assert totals.file_bytes == sum(
        (
            totals.coded_bytes,
            totals.kept_bytes,
            totals.other_bytes,
            totals.header_bytes,
            totals.manifest_bytes,
            totals.padding_bytes,
        )
    )
    assert verify(path) == []

    rebuilt = logits(from_folder(family, reconstruct(path, tmp_path / "rebuilt")))
    loaded, tokenizer = reallm.load(path)
    assert tokenizer is None
    assert torch.equal(rebuilt, logits(loaded))
    assert torch.equal(rebuilt, made.logits) == (recipe is EXACT)
    assert (rebuilt - made.logits).norm() < made.logits.norm()
    exact, _ = reallm.load(path, dtype="float32")
    packed, _ = reallm.load(path, mode="packed", dtype="float32")
    held = [len(weight.value.pieces) for weight in packed_weights(packed).values()]
    assert sum(held) == family.matrices
    assert (logits(packed) - logits(exact)).norm() < 1e-4 * logits(exact).norm()
    if recipe is EXACT:
        same_tensors(made.folder, tmp_path / "rebuilt", except_for=family.ties)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        tensors.update(load_file(shard))
    return tensors


def same_tensors(one: Path, other: Path, *, except_for: tuple[str, ...] = ()) -> None:
    """Both folders hold the same names, types, shapes and bits."""
    left, right = stored(one), stored(other)
    assert left.keys() - set(except_for) == right.keys()
    for name, values in right.items():
        assert values.dtype == left[name].dtype, name
        assert torch.equal(values, left[name]), name


def test_rebuilt_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model comes back in several files with an index that transformers follows."""
    family = FAMILIES["llama"]
    folder = tmp_path / "model"
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    noisy(model)
    model.save_pretrained(folder)
    monkeypatch.setattr("reallm_compiler.models.shards.SHARD_BYTES", 20_000)
    reallm.compile(EXACT, model=folder, output=tmp_path / "o.reallm", device="cpu")
    rebuilt = reconstruct(tmp_path / "o.reallm", tmp_path / "rebuilt")
    assert len(list(rebuilt.glob("model-*-of-*.safetensors"))) > 3
    same_tensors(folder, rebuilt)
    expected = logits(from_folder(family, folder))
    assert torch.equal(logits(from_folder(family, rebuilt)), expected)


def test_names_of_the_base_model(tmp_path: Path) -> None:
    """GPT-2 as the Hub has it: no `transformer.` before the names, and masks among the tensors."""
    folder = tmp_path / "model"
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    noisy(model)
    model.save_pretrained(folder)
    tensors = {
        name.removeprefix("transformer."): values
        for name, values in load_file(folder / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = torch.ones(64, 64).tril().view(1, 1, 64, 64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "o.reallm"
    report = reallm.compile(EXACT, model=folder, output=path, device="cpu")
    assert report.budget.totals.file_bytes == path.stat().st_size
    assert len(report.errors) == 8
    same_tensors(folder, reconstruct(path, tmp_path / "rebuilt"))
    loaded, _ = reallm.load(path)
    assert torch.equal(logits(loaded), logits(model))


BLOCK = 16


def fp8_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp8 numbers [p, q] and float32 scales of blocks of 16 x 16."""
    p, q = weight.shape
    grid = weight.float().view(p // BLOCK, BLOCK, q // BLOCK, BLOCK)
    scale = grid.abs().amax(dim=(1, 3)) / 448
    numbers = (grid / scale[:, None, :, None]).view(p, q).to(torch.float8_e4m3fn)
    return numbers, scale


def test_fp8_with_scales_of_blocks(tmp_path: Path) -> None:
    """An fp8 checkpoint is the bf16 model of its numbers times their scales."""
    config = transformers.LlamaConfig(**SMALL, dtype="bfloat16")
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    noisy(model)
    model.save_pretrained(tmp_path / "bf16")
    plain = load_file(tmp_path / "bf16" / "model.safetensors")
    fp8, wide = dict(plain), dict(plain)
    for name in plain:
        if name.endswith("_proj.weight"):
            numbers, scale = fp8_of(plain[name])
            fp8[name], fp8[f"{name}_scale_inv"] = numbers, scale
            spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            wide[name] = (numbers.float() * spread).to(torch.bfloat16)
    folder = tmp_path / "fp8"
    transformers.LlamaConfig(
        **SMALL,
        dtype="bfloat16",
        quantization_config={"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
    ).save_pretrained(folder)
    save_file(fp8, folder / "model.safetensors", metadata={"format": "pt"})

    path = tmp_path / "out.reallm"
    plan = reallm.plan(EXACT, model=folder)
    assert len(plan.matrices) == 14
    assert {matrix.dtype for matrix in plan.matrices} == {"bf16"}
    reallm.compile(EXACT, model=folder, output=path, device="cpu")
    assert path.stat().st_size == plan.budget().totals.file_bytes
    rebuilt = reconstruct(path, tmp_path / "rebuilt")
    found = stored(rebuilt)
    assert found.keys() == wide.keys()
    assert all(torch.equal(found[name], wide[name]) for name in wide)
    family = FAMILIES["llama"]
    loaded, _ = reallm.load(path)
    assert torch.equal(logits(loaded), logits(from_folder(family, rebuilt)))


@pytest.mark.parametrize("name", ["weights.safetensors", "model.safetensors"])
def test_matrices_without_a_config(tmp_path: Path, name: str) -> None:
    """A bare folder: every 2-D tensor is a matrix; it comes back as a folder of matrices."""
    folder = tmp_path / "bare"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(24, 40, generator=generator),
        "blocks.0.w": torch.randn(16, 32, generator=generator).half(),
        "blocks.0.b": torch.randn(16, generator=generator).bfloat16(),
        "count": torch.arange(6),
    }
    save_file(tensors, folder / name)
    path = tmp_path / "o.reallm"
    for recipe in (CODED, EXACT):
        plan = reallm.plan(recipe, model=folder)
        assert sorted(matrix.name for matrix in plan.matrices) == ["a", "blocks.0.w"]
        reallm.compile(recipe, model=folder, output=path, device="cpu", force=True)
        assert path.stat().st_size == plan.budget().totals.file_bytes
        assert verify(path) == []
    rebuilt = reconstruct(path, tmp_path / "rebuilt")
    names = sorted(entry.name for entry in rebuilt.iterdir())
    assert names == [".reallm.json", "model.safetensors"]
    same_tensors(folder, rebuilt)
    with safe_open(rebuilt / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tensors)
    with pytest.raises(reallm.errors.SourceError, match="without a config"):
        reallm.load(path)
