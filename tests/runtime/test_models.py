"""One way from files to a model: the class that the config names, all tensors, nothing random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler.errors import EvaluationError, FormatError, SourceError
from reallm_compiler.evaluate import evaluate_files
from reallm_compiler.reader.archive import ModelArchive

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
BERT = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 8,
}
SPEECH = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 48,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
QWEN35 = {
    **TINY,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [1, 1, 2],
        "partial_rotary_factor": 1.0,
    },
}


def config(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


def llava() -> Any:
    text = {**TINY, "model_type": "llama"}
    vision = {**VISION, "model_type": "clip_vision_model"}
    return config("LlavaConfig", text_config=text, vision_config=vision, image_token_index=5)


def qwen35() -> Any:
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 16,
        "patch_size": 8,
        "num_position_embeddings": 16,
    }
    return config("Qwen3_5Config", text_config=QWEN35, vision_config=vision)


MODELS = {
    "LlamaForSequenceClassification": lambda: config("LlamaConfig", **TINY, num_labels=3),
    "BertForTokenClassification": lambda: config("BertConfig", **BERT, num_labels=5),
    "BertForSequenceClassification": lambda: config("BertConfig", **BERT),
    "DistilBertForQuestionAnswering": lambda: config(
        "DistilBertConfig", dim=16, n_layers=1, n_heads=2, hidden_dim=24, vocab_size=48
    ),
    "MistralModel": lambda: config("MistralConfig", **TINY),
    "WhisperForConditionalGeneration": lambda: config("WhisperConfig", **SPEECH),
    "Wav2Vec2ForCTC": lambda: config(
        "Wav2Vec2Config",
        **{k: v for k, v in BERT.items() if k != "max_position_embeddings"},
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    ),
    "T5ForConditionalGeneration": lambda: config(
        "T5Config", d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=48
    ),
    "CLIPVisionModelWithProjection": lambda: config("CLIPVisionConfig", **VISION),
    "LlavaForConditionalGeneration": llava,
    "Qwen3_5ForConditionalGeneration": qwen35,
}
PREDICT_TEXT = {"LlavaForConditionalGeneration", "Qwen3_5ForConditionalGeneration"}


def saved(name: str, folder: Path) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, name)(MODELS[name]()).to(torch.bfloat16).eval()
    model.save_pretrained(folder)
    return model


def compiled(folder: Path) -> Path:
    """An archive of a folder, nothing coded."""
    path = folder.with_suffix(".reallm")
    reallm.compile({"reallm": 1}, model=folder, output=path, workers=1)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Anna has three red apples and gives one to Tom. " * 8)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_the_class_that_the_config_names_with_all_its_tensors(
    name: str, tmp_path: Path, text: Path
) -> None:
    folder = tmp_path / "model"
    model = saved(name, folder)
    archive = compiled(folder)
    wanted = model.state_dict()
    for path in (folder, archive):
        loaded, tokenizer = reallm.load(path)
        assert type(loaded).__name__ == name
        assert tokenizer is None
        found = loaded.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], values) for key, values in wanted.items())
        with pytest.raises(SourceError) as caught:
            evaluate_files(path, text)
        refusal = "has no tokenizer" if name in PREDICT_TEXT else f"{name} has no perplexity"
        assert refusal in str(caught.value)


def edited(folder: Path, change) -> None:
    """Change the tensors of a folder in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path, metadata={"format": "pt"})


def under_a_prefix(tensors: dict) -> dict:
    return {f"_orig_mod.{name}": values for name, values in tensors.items()}


def without_a_head(tensors: dict) -> dict:
    return {name: values for name, values in tensors.items() if name != "lm_head.weight"}


def with_one_more(tensors: dict) -> dict:
    return {**tensors, "value_head.weight": torch.ones(1, 16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (under_a_prefix, r"12 are missing \(lm_head.weight, .*\); 12 are not used \(_orig_mod"),
        (without_a_head, r"LlamaForCausalLM: 1 is missing \(lm_head.weight\)"),
        (with_one_more, r"1 is not used \(value_head.weight\)"),
    ],
)
def test_a_tensor_too_many_or_too_few_is_refused(tmp_path: Path, change, message: str) -> None:
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(config("LlamaConfig", **TINY)).save_pretrained(folder)
    edited(folder, change)
    archive = compiled(folder)
    for load in (reallm.load, reallm.open_tunable):
        with pytest.raises(SourceError, match=message):
            load(archive)
    with pytest.raises(SourceError, match=message):
        reallm.load(folder)


def test_layers_for_multi_token_prediction_may_be_left_out(tmp_path: Path) -> None:
    """Numbered on after the last layer, or under a name of their own."""
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(config("LlamaConfig", **TINY)).save_pretrained(folder)
    last = f"model.layers.{TINY['num_hidden_layers'] - 1}."

    def with_prediction(tensors: dict) -> dict:
        more = {n: v.clone() for n, v in tensors.items() if n.startswith(last)}
        numbered = {
            n.replace(last, f"model.layers.{TINY['num_hidden_layers']}."): v
            for n, v in more.items()
        }
        return {**tensors, **numbered, "mtp.layers.0.fc.weight": torch.ones(16, 16)}

    edited(folder, with_prediction)
    for path in (folder, compiled(folder)):
        assert reallm.load(path)[0].config.num_hidden_layers == TINY["num_hidden_layers"]


@pytest.mark.parametrize(
    ("name", "settings", "buffers"),
    [
        (
            "BertForMaskedLM",
            BERT,
            {"bert.embeddings.position_ids": torch.arange(32).view(1, 32)},
        ),
        (
            "GPT2LMHeadModel",
            {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 48, "n_positions": 8},
            {
                "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
                "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
            },
        ),
        (
            "LlamaForCausalLM",
            TINY,
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        ),
    ],
)
def test_a_buffer_that_the_model_computes_itself_is_no_stranger(
    tmp_path: Path, name: str, settings: dict[str, Any], buffers: dict[str, torch.Tensor]
) -> None:
    folder = tmp_path / "model"
    family = name.split("For")[0].split("LM")[0]
    model = getattr(transformers, name)(config(f"{family}Config", **settings))
    model.save_pretrained(folder)
    edited(folder, lambda tensors: {**tensors, **buffers})
    for path in (folder, compiled(folder)):
        assert type(reallm.load(path)[0]).__name__ == name


def test_unsound_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        reallm.load(tmp_path / "nowhere")
    with pytest.raises(FormatError):
        reallm.load(tmp_path / "nowhere.reallm")
    folder = tmp_path / "model"
    transformers.LlamaModel(config("LlamaConfig", **TINY)).save_pretrained(folder)
    with pytest.raises(SourceError, match="an adapter is for archives"):
        reallm.load(folder, adapter="tuned.adapter")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="its config alone is there"):
        reallm.load(folder)


def test_a_damaged_section_is_reported_as_that(
    tiny_llama: Path, tmp_path: Path, monkeypatch
) -> None:
    archive = tmp_path / "model.reallm"
    reallm.compile({"reallm": 1}, model=tiny_llama, output=archive, workers=1)

    def damaged(self: ModelArchive, name: str, **options: object) -> None:
        raise FormatError("S1", "the digest of a section differs", location=name)

    monkeypatch.setattr(ModelArchive, "tensor", damaged)
    with pytest.raises(FormatError, match="the digest of a section differs"):
        reallm.load(archive)


@pytest.mark.parametrize("content", [None, {"max_new_tokens": 33, "eos_token_id": [1, 7]}])
def test_the_generation_config_is_that_of_the_folder(
    tiny_llama: Path, tmp_path: Path, content: dict[str, Any] | None
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").unlink()
    if content is not None:
        (folder / "generation_config.json").write_text(json.dumps(content))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config
    for path in (folder, compiled(folder)):
        ours = reallm.load(path)[0].generation_config
        assert ours.to_diff_dict() == theirs.to_diff_dict()


def test_a_vocabulary_alone_is_a_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    transformers.BertLMHeadModel(
        config("BertConfig", **{**BERT, "vocab_size": 16}, is_decoder=True)
    ).save_pretrained(folder)
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] anna has three red apples . and gives one to tom"
    (folder / "vocab.txt").write_text("\n".join(words.split()) + "\n")
    (tmp_path / "text.txt").write_text("Anna has three red apples and gives one to Tom. " * 8)
    found = [
        evaluate_files(path, tmp_path / "text.txt", window=16).loss
        for path in (folder, compiled(folder))
    ]
    assert found[0] == found[1]


def test_a_checkpoint_of_fp8_is_its_own_reference(
    tiny_llama: Path, tmp_path: Path, text: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    def scaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            scale = tensors[name].float().abs().max() / 448
            tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.view(1, 1)
        return tensors

    edited(folder, scaled)
    stated = json.loads((folder / "config.json").read_text())
    stated["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(stated))
    found = evaluate_files(compiled(folder), text, window=16, reference=folder)
    assert (found.kl, found.top1_agreement) == (0.0, 1.0)
    assert found.reference_perplexity == found.perplexity


def test_devices_and_types_are_checked_before_the_file_is_opened(tmp_path: Path) -> None:
    for load in (reallm.load, reallm.open_tunable):
        with pytest.raises(EvaluationError, match="`gpu` is not a device"):
            load(tmp_path / "nowhere.reallm", device="gpu")
        with pytest.raises(EvaluationError, match="no type 'int8' to run a model in"):
            load(tmp_path / "nowhere.reallm", dtype=torch.int8)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "source", None])
def test_a_type_by_name_or_as_torch_has_it(tiny_llama: Path, dtype) -> None:
    model, _ = reallm.load(tiny_llama, dtype=dtype, device="auto")
    assert model.dtype == torch.bfloat16
