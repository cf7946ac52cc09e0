"""Loading what is to be evaluated, and the whole of an evaluation from paths."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import reallm_compiler as reallm
from reallm_compiler.errors import EvaluationError, FormatError, SourceError
from reallm_compiler.evaluate import (
    evaluate,
    evaluate_files,
    load_for_evaluation,
    load_tokenizer,
)

TEXT = "One fine day a fox met a crow with a cheese. " * 12


def make_tokenizer(extra=()):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {letter: index + 1 for index, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(list(extra))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A stored bfloat16 model; never changed by a test."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "copy")


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        (None, torch.float32),
        ("float32", torch.float32),
        ("source", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_a_folder_is_loaded_in_float32_unless_asked(made, asked, dtype):
    model, tokenizer = load_for_evaluation(made, dtype=asked)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.training
    assert tokenizer("a")["input_ids"] == make_tokenizer()("a")["input_ids"]
    stored = load_file(made / "model.safetensors")["model.embed_tokens.weight"]
    if dtype is torch.float32:
        assert torch.equal(model.model.embed_tokens.weight, stored.float())


def test_evaluate_files_is_the_whole_of_it(made, capfd):
    result = evaluate_files(made, made / "text.txt", window=16, reference=made, batch=2)
    model, tokenizer = load_for_evaluation(made)
    assert result == evaluate(model, tokenizer, TEXT, window=16, reference=model, batch=2)
    assert result.kl == 0.0
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def archive(made, tmp_path_factory):
    """An archive of it with nothing coded."""
    path = tmp_path_factory.mktemp("archive") / "model.reallm"
    reallm.compile({"reallm": 1}, model=made, output=path, workers=1)
    return path


def test_an_archive_is_evaluated_as_its_folder_is(made, archive):
    of_archive = evaluate_files(archive, made / "text.txt", window=16, reference=made)
    assert of_archive.kl == 0.0
    assert of_archive.loss == evaluate_files(made, made / "text.txt", window=16).loss


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(15)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def unknown_family(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "gyroscope"
    (folder / "config.json").write_text(json.dumps(config))


def remove_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            drop_tensor,
            r"not those of LlamaForCausalLM: 1 is missing \(model.layers.0.mlp.up_proj.weight\)",
            id="missing-tensor",
        ),
        pytest.param(
            reshape_tensor,
            r"1 has another shape \(model.norm.weight 15, not 16\)",
            id="other-shape",
        ),
        pytest.param(cut_weights, "bytes", id="cut-off"),
        pytest.param(pickle_weights, "pickled weights are not read", id="pickle-only"),
        pytest.param(
            lambda folder: (folder / "config.json").unlink(),
            "without a config.json",
            id="no-config",
        ),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("{"), "not valid", id="bad-config"
        ),
        pytest.param(unknown_family, "'gyroscope' is not known", id="unknown-family"),
        pytest.param(remove_tokenizer, "has no tokenizer", id="no-tokenizer"),
        pytest.param(
            lambda folder: (folder / "tokenizer.json").write_text("[]"),
            "the tokenizer cannot be loaded",
            id="bad-tokenizer",
        ),
    ],
)
def test_an_unsound_folder_is_reported(folder, damage, message):
    damage(folder)
    with pytest.raises(SourceError, match=message) as caught:
        load_for_evaluation(folder)
    assert caught.value.location is not None


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "a/b/c", "model.reallm", "~/model"])
def test_a_path_to_nothing_is_reported_without_asking_the_hub(path):
    for load in (load_for_evaluation, load_tokenizer):
        with pytest.raises((SourceError, FormatError), match="no such file"):
            load(path)


def test_a_path_in_a_folder_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="no such file or folder"):
        load_for_evaluation("models/nothing")


def test_an_archive_without_a_tokenizer_is_reported(folder, tmp_path):
    remove_tokenizer(folder)
    reallm.compile({"reallm": 1}, model=folder, output=tmp_path / "model.reallm", workers=1)
    with pytest.raises(SourceError, match="the model has no tokenizer"):
        load_for_evaluation(tmp_path / "model.reallm")


def test_one_file_of_a_model_points_to_its_folder(made):
    with pytest.raises(SourceError, match="one file of a model") as caught:
        load_for_evaluation(made / "model.safetensors")
    assert caught.value.hint == f"give the folder that holds it: {made}"


def test_other_tokenizers_are_refused_before_weights_are_read(made, folder, monkeypatch):
    make_tokenizer(extra=["<new>"]).save_pretrained(folder)
    monkeypatch.setattr("reallm_compiler.evaluate.models.build_model", None)
    with pytest.raises(EvaluationError, match="different tokenizers"):
        evaluate_files(made, made / "text.txt", reference=folder)


def test_the_text_is_read_before_the_model(tmp_path):
    with pytest.raises(EvaluationError, match="no such text file"):
        evaluate_files(tmp_path / "no-model", tmp_path / "no-text")


def test_the_type_is_checked_first(tmp_path):
    with pytest.raises(EvaluationError, match="no type 'int4'"):
        load_for_evaluation(tmp_path / "nothing", dtype="int4")
