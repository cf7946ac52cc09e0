"""Names of embedded files: what an archive cannot hold is refused with its place in the folder."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_compiler.errors import SourceError
from reallm_compiler.sources import open_source

NAMES = {
    "colon": (b"a:b.jinja", "a backslash or a colon"),
    "backslash": (b"a\\b.jinja", "a backslash or a colon"),
    "control character": (b"a\nb.jinja", "control character U+000A"),
    "no text": (b"a\xff.jinja", "not UTF-8"),
}


@pytest.mark.parametrize(("name", "note"), NAMES.values(), ids=NAMES.keys())
def test_odd_name_of_a_template(tmp_path, name, note):
    save_file({"a.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "plain.jinja").write_text("x")
    assert any(path.endswith("plain.jinja") for path, _ in open_source(tmp_path).files)
    (folder / os.fsdecode(name)).write_text("x")
    with pytest.raises(SourceError, match="cannot be carried") as caught:
        open_source(tmp_path)
    assert note in caught.value.note
    assert caught.value.location == str(folder / os.fsdecode(name))


def folder_with(folder, *texts):
    """A model's folder with files besides; a text may name several."""
    save_file({"a.weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in (name for text in texts for name in text.split()):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


CARRIED = """
added_tokens.json additional_chat_templates/tool.jinja audio_tokenizer_config.json bpe.codes
chat_template.jinja chat_template.json chat_template_tools.jinja dict.txt emoji.json
entity_vocab.json generation_config.json image_processor_config.json merges.txt normalizer.json
o200k_base.tiktoken preprocessor_config.json processor_config.json qwen.tiktoken
sentencepiece.bpe.model sentencepiece.model source.spm special_tokens_map.json spiece.model
spm_char.model target.spm target_vocab.json tekken.json tokenizer.json tokenizer.model
tokenizer_config.json video_preprocessor_config.json vocab-src.json vocab.bpe vocab.json vocab.txt
modules.json config_sentence_transformers.json sentence_bert_config.json 1_Pooling/config.json
tokenizer.model.v3 2_Dense/config.json 2_Dense/model.safetensors
"""
SILENT = """
README.md LICENSE LICENSE.txt USE_POLICY.md NOTICE .gitattributes picture.png modeling_x.py
training_args.bin optimizer.pt flax_model.msgpack model.onnx pytorch_model.bin.index.json
assets/logo.svg onnx/model.onnx .cache/state.json 1_Pooling/README.md
"""
TOLD = {
    "params.json": "params.json",
    "trainer_state.json": "trainer_state.json",
    "recipe.yaml": "recipe.yaml",
    "original/params.json": "original/",
    "additional_chat_templates/evil.py": "additional_chat_templates/evil.py",
    "2_Dense/pytorch_model.bin": "2_Dense/pytorch_model.bin",
    "a\x1b[2J.json": r"'a\x1b[2J.json'",
}


def test_small_files_are_carried_or_noted(tmp_path):
    inventory = open_source(folder_with(tmp_path, CARRIED, SILENT, *TOLD))
    files = dict(inventory.files)
    assert set(files) == {"config.json", *CARRIED.split()}
    assert list(files) == sorted(files)
    assert files["tokenizer.json"] == b"content of tokenizer.json"
    (note,) = inventory.notes
    left = note.removeprefix("files that are not carried: ").split(", ")
    assert sorted(left) == sorted(TOLD.values())


def test_nothing_left_out_is_no_note(tmp_path):
    assert open_source(folder_with(tmp_path, "tokenizer.json", SILENT)).notes == ()


def test_a_long_list_is_cut(tmp_path):
    (note,) = open_source(folder_with(tmp_path, *(f"x{i}.yaml" for i in range(40)))).notes
    assert note.endswith(" and 28 more")


def test_modules_only_where_they_are_listed(tmp_path):
    inventory = open_source(folder_with(tmp_path, "1_Pooling/config.json"))
    assert [name for name, _ in inventory.files] == ["config.json"]
    assert inventory.notes == ("files that are not carried: 1_Pooling/",)


def test_links_out_of_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    folder_with(folder, "modules.json")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    (folder / "other").symlink_to(tmp_path / "secret")
    assert open_source(folder).notes == ("files that are not carried: other/",)
    (folder / "1_Pooling").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="outside the checkpoint's folder"):
        open_source(folder)


def test_lengths(tmp_path, monkeypatch):
    monkeypatch.setattr("reallm_compiler.sources.carried.FILE_LIMIT", 30)
    folder_with(tmp_path, "modules.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    inventory = open_source(tmp_path)
    assert "2_Dense/config.json" in dict(inventory.files)
    assert inventory.notes == ("files that are not carried: 2_Dense/model.safetensors",)
    (tmp_path / "vocab.json").write_text("0123456789" * 4)
    with pytest.raises(SourceError, match="longer than 30 bytes") as caught:
        open_source(tmp_path)
    assert caught.value.location.endswith("vocab.json")
