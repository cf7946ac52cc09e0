"""Beside peft itself: the same logits for what is exported and imported, a refusal for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler.errors import AdapterError
from reallm_compiler.finetune.peft_layout import export_peft, import_peft

peft = pytest.importorskip("peft")

# peft 0.21 asks transformers 5.23 by an old name, and has advice for those who train.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

IDS = torch.arange(24)[None] + 3
CODED = {
    "reallm": 1,
    "defaults": {
        "residual": {"kind": "low_rank", "rank": 2, "dtype": "float32"},
        "scales": {"kind": "absmax", "per": "row"},
        "quantizer": {"kind": "uniform", "bits": 3},
    },
}
EMBEDDED = {**CODED, "rules": [{"match": "*embed_tokens", "set": {"quantizer": {"bits": 4}}}]}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, **changes))


def llava() -> Any:
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
        image_token_index=5,
    )
    return transformers.LlavaForConditionalGeneration(config)


def gpt2() -> Any:
    sizes = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def zamba2() -> Any:
    sizes: Any = {**TEXT, "num_key_value_heads": 4, "num_hidden_layers": 4}
    config = transformers.Zamba2Config(  # type: ignore[call-arg]
        **sizes,
        mamba_d_state=8,
        mamba_headdim=16,
        n_mamba_heads=4,
        mamba_ngroups=1,
        layers_block_type=["mamba", "hybrid"] * 2,
        num_mem_blocks=1,
        chunk_size=8,
    )
    return transformers.Zamba2ForCausalLM(config)


def shown(settings: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def mamba() -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))


class Case:
    """A model, its archive, and the coded part alone as peft's base."""

    def __init__(self, model: Any, recipe: dict, folder: Path) -> None:
        self.archive, self.base, self.folder = folder / "a.reallm", folder / "base", folder
        self.kind = type(model)
        model.save_pretrained(folder / "model")
        reallm.compile(recipe, model=folder / "model", output=self.archive, device="cpu", workers=1)
        reallm.reconstruct(self.archive, self.base, coded_only=True)

    def plain(self) -> Any:
        return self.kind.from_pretrained(self.base, dtype=torch.float32).eval()

    def peft_logits(self, folder: Path) -> torch.Tensor:
        return logits(peft.PeftModel.from_pretrained(self.plain(), folder).eval())

    def our_logits(self, adapter: Path | None = None) -> torch.Tensor:
        """Of the model with what is tuned."""
        whole = reallm.reconstruct(self.archive, self.folder / "whole", adapter=adapter, force=True)
        return logits(self.kind.from_pretrained(whole, dtype=torch.float32).eval())

    def trained(self, name: str = "peft", **settings: Any) -> Path:
        """A folder that peft saved, with factors that are not zero."""
        settings = {"r": 2, "target_modules": ["q_proj", "down_proj"], **settings}
        model = peft.get_peft_model(self.plain(), peft.LoraConfig(**settings))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for path, value in model.named_parameters():
                if "lora_B" in path or "lora_embedding_A" in path:
                    value.normal_(generator=generator).mul_(0.1)
        model.save_pretrained(self.folder / name, save_embedding_layers=False)
        return self.folder / name

    def imported(self, folder: Path) -> torch.Tensor:
        path = self.folder / f"{folder.name}.adapter"
        import_peft(self.archive, folder, path, factors="float32")
        return self.our_logits(path)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def made(model: Any, recipe: dict, folder: Path) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Case(model(), recipe, folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(llama, CODED, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(lambda: llama(tie_word_embeddings=True), EMBEDDED, tmp_path_factory.mktemp("tied"))


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        (llava, CODED),
        (gpt2, CODED),
        (lambda: llama(tie_word_embeddings=True), EMBEDDED),
        (llama, EMBEDDED),
        (llama, {**CODED, "defaults": {**CODED["defaults"], "dora": True}}),
        (llama, {**CODED, "rules": [{"match": "*.v_proj", "set": {"residual": {"rank": 5}}}]}),
        (zamba2, CODED),
    ],
    ids=[
        "vision-language",
        "conv1d",
        "tied-embedding",
        "embedding",
        "dora",
        "ranks",
        "shared-blocks",
    ],
)
def test_peft_computes_what_was_exported(model: Any, recipe: dict, tmp_path: Path) -> None:
    case = made(model, recipe, tmp_path)
    folder = export_peft(case.archive, tmp_path / "peft")
    whole, coded = case.our_logits(), logits(case.plain())
    assert torch.allclose(case.peft_logits(folder), whole, atol=1e-4)
    assert not torch.allclose(coded, whole, atol=1e-3)
    assert torch.allclose(case.imported(folder), whole, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_alpha": 7},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.mlp.down_proj": 9}},
        {"use_dora": True, "lora_alpha": 6},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"layers_to_transform": [1]},
    ],
    ids=lambda settings: shown(settings) or "plain",
)
def test_what_peft_trained_is_taken_up(case: Case, settings: dict, tmp_path: Path) -> None:
    case.folder = tmp_path
    folder = case.trained(**settings)
    wanted = case.peft_logits(folder)
    assert not torch.allclose(wanted, logits(case.plain()), atol=1e-3)
    assert torch.allclose(case.imported(folder), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"target_parameters": ["q_proj.weight"], "target_modules": []}, "target_parameters"),
    ],
    ids=lambda value: shown(value) if isinstance(value, dict) else "",
)
def test_what_an_adapter_cannot_hold_is_refused(
    case: Case, settings: dict, message: str, tmp_path: Path
) -> None:
    case.folder = tmp_path
    folder = case.trained(**settings)
    with pytest.raises(AdapterError) as caught:
        import_peft(case.archive, folder, tmp_path / "a")
    assert message in f"{caught.value} {caught.value.hint}"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "train it again"),
        ({"init_lora_weights": "of tomorrow"}, "train it again"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_something_new": {"x": 1}}, "use_something_new"),
        ({"use_dora": True}, "has no magnitudes"),
        ({"r": 3}, "have rank 2, and the config says 3"),
        ({"alpha_pattern": {"(": 1}}, "cannot be read"),
        ({"lora_alpha": "much"}, "cannot be read"),
    ],
    ids=lambda value: shown(value) if isinstance(value, dict) else "",
)
def test_a_config_that_says_more_is_refused(
    case: Case, changes: dict, message: str, tmp_path: Path
) -> None:
    case.folder = tmp_path
    folder = case.trained()
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(AdapterError) as caught:
        import_peft(case.archive, folder, tmp_path / "a")
    assert message in f"{caught.value} {caught.value.hint}"


def test_pissa_converted_by_peft_is_taken_up(case: Case, tmp_path: Path) -> None:
    settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    model = peft.get_peft_model(case.plain(), peft.LoraConfig(**settings)).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for path, value in model.named_parameters():
            if "lora_B" in path:
                value.mul_(1.5)
    wanted = logits(model)
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    case.folder = tmp_path
    assert torch.allclose(case.imported(tmp_path / "plain"), wanted, atol=1e-4)


def test_an_adapter_of_a_tied_embedding(tied: Case, tmp_path: Path) -> None:
    tied.folder = tmp_path
    both = tied.trained("both", target_modules=["embed_tokens"], ensure_weight_tying=True)
    assert torch.allclose(tied.imported(both), tied.peft_logits(both), atol=1e-4)
    for name, targets in (("one", ["embed_tokens"]), ("two", ["embed_tokens", "lm_head"])):
        with pytest.raises(AdapterError, match="share one weight") as caught:
            import_peft(tied.archive, tied.trained(name, target_modules=targets), tmp_path / "a")
        assert "ensure_weight_tying" in str(caught.value.hint)


def test_weights_of_the_base_in_an_adapter_are_refused(case: Case, tmp_path: Path) -> None:
    case.folder = tmp_path
    folder = case.trained()
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] = torch.zeros(64, 32)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="a weight of the base itself") as caught:
        import_peft(case.archive, folder, tmp_path / "a")
    assert "save_embedding_layers" in str(caught.value.hint)


def test_what_peft_does_not_take_is_refused(tmp_path: Path) -> None:
    """peft does not adapt layers of a Mamba block whose weights the kernels read by themselves."""
    case = made(mamba, CODED, tmp_path)
    with pytest.raises(AdapterError, match="does not adapt this model") as caught:
        export_peft(case.archive, tmp_path / "peft")
    assert "Mamba" in str(caught.value.note)
    assert not (tmp_path / "peft").exists()
