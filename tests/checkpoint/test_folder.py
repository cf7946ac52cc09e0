"""Folders: shards and their index, what is refused, and what is carried along."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_compiler.checkpoint import open_source
from reallm_compiler.errors import SourceError

CONFIG = {"model_type": "llama", "tie_word_embeddings": False}


def tensors(*names, shape=(4, 6)):
    return {name: np.zeros(shape, np.float32) for name in names}


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards with a correct index."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors("layers.0.a.weight"), folder / "model-00001-of-00002.safetensors")
    save_file(tensors("layers.1.a.weight"), folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_index(folder)
    return folder


def write_index(folder, **changes):
    weight_map = {
        "layers.0.a.weight": "model-00001-of-00002.safetensors",
        "layers.1.a.weight": "model-00002-of-00002.safetensors",
        **{name.replace("__", "."): shard for name, shard in changes.items()},
    }
    weight_map = {name: shard for name, shard in weight_map.items() if shard is not None}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def refusal(path):
    with pytest.raises(SourceError) as caught:
        open_source(path)
    return caught.value


def test_sharded(sharded):
    inventory = open_source(sharded)
    assert inventory.kind == "model"
    assert inventory.complete
    assert [(t.name, t.shard[:11]) for t in inventory.tensors] == [
        ("layers.0.a.weight", "model-00001"),
        ("layers.1.a.weight", "model-00002"),
    ]
    assert (sharded / inventory.tensors[1].shard).exists()
    assert dict(inventory.files) == {"config.json": (sharded / "config.json").read_bytes()}


def test_single_file_wins_over_an_index(sharded):
    save_file(tensors("layers.0.b.weight"), sharded / "model.safetensors")
    inventory = open_source(sharded)
    assert [t.name for t in inventory.tensors] == ["layers.0.b.weight"]
    assert "both there" in inventory.notes[0]


def test_safetensors_win_over_other_formats(sharded):
    (sharded / "pytorch_model.bin").write_bytes(b"x")
    (sharded / "model.gguf").write_bytes(b"x")
    assert len(open_source(sharded).tensors) == 2


def test_missing_shards_are_listed_together(sharded):
    for name in os.listdir(sharded):
        if name.endswith("2.safetensors"):
            (sharded / name).unlink()
    message = str(refusal(sharded))
    assert "2 of 2 shards are missing" in message
    assert "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors" in message


def test_truncated_shard_is_named(sharded):
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    error = refusal(sharded)
    assert error.message == "shard model-00002-of-00002.safetensors ends 10 bytes early"
    assert "download it again" in error.hint


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ODD_INDEXES = {
    "in the other shard": ({"layers__1__a__weight": FIRST}, None),
    "a buffer that no shard holds": (
        {"layers__0__rotary_emb__inv_freq": FIRST},
        "model.safetensors.index.json names, but no shard holds: 'layers.0.rotary_emb.inv_freq'",
    ),
    "a layer that no shard holds": (
        {"layers__2__a__weight": FIRST},
        "but no shard holds: 'layers.2.a.weight'",
    ),
    "a name that moves the cursor": ({"\x1b[2J": FIRST}, "no shard holds: '\\x1b[2J'"),
}


@pytest.mark.parametrize(("changes", "note"), ODD_INDEXES.values(), ids=ODD_INDEXES.keys())
def test_index_that_differs_from_the_shards(sharded, changes, note):
    """As in transformers, what the shards hold is the checkpoint."""
    write_index(sharded, layers__1__b__weight=SECOND, **changes)
    save_file(tensors("layers.1.a.weight", "layers.1.b.weight"), sharded / SECOND)
    inventory = open_source(sharded)
    names = ["layers.0.a.weight", "layers.1.a.weight", "layers.1.b.weight"]
    assert [t.name for t in inventory.tensors] == names
    assert inventory.tensors[1].shard == SECOND
    assert [note in found for found in inventory.notes] == ([] if note is None else [True])


def test_shard_that_the_index_does_not_name(sharded):
    write_index(sharded, layers__1__a__weight=None)
    # A shard that nobody names is not opened: that tensor is simply not in the model.
    assert [t.name for t in open_source(sharded).tensors] == ["layers.0.a.weight"]


def test_weight_that_no_shard_holds(sharded):
    """Its layer is there, and other layers have it: the checkpoint is incomplete."""
    save_file(tensors("layers.0.a.weight", "layers.0.b.weight"), sharded / FIRST)
    write_index(sharded, layers__0__b__weight=FIRST, layers__1__b__weight=SECOND)
    error = refusal(sharded)
    assert "'layers.1.b.weight' is in model-00002-of-00002.safetensors by the index" in str(error)
    assert "incomplete" in error.note
    assert "again" in error.hint


def test_tensor_that_the_index_forgets(sharded):
    save_file(tensors("layers.0.a.weight", "layers.0.b.weight"), sharded / FIRST)
    inventory = open_source(sharded)
    assert [t.name for t in inventory.tensors][:2] == ["layers.0.a.weight", "layers.0.b.weight"]
    assert (
        "that model.safetensors.index.json does not name: 'layers.0.b.weight'" in inventory.notes[0]
    )


def test_tensor_in_two_shards(sharded):
    save_file(tensors("layers.0.a.weight", "layers.1.a.weight"), sharded / FIRST)
    inventory = open_source(sharded)
    assert [(t.name, t.shard) for t in inventory.tensors] == [
        ("layers.0.a.weight", FIRST),
        ("layers.1.a.weight", SECOND),
    ]
    assert "two shards, of which the later shard's are used: 'layers.1.a" in inventory.notes[0]


def name_weights(folder, name):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "transformers_weights": name}))


@pytest.mark.parametrize("name", ["other.safetensors", "sub/other.safetensors"])
def test_config_that_names_its_weights(sharded, name):
    save_file(tensors("layers.0.b.weight"), sharded / "model.safetensors")
    (sharded / "sub").mkdir()
    save_file(tensors("layers.0.c.weight"), sharded / name)
    name_weights(sharded, name)
    inventory = open_source(sharded)
    assert [(t.name, t.shard) for t in inventory.tensors] == [("layers.0.c.weight", name)]
    # The archive gives the weights another name, so that its config must not say this one.
    assert inventory.config == CONFIG
    assert json.loads(dict(inventory.files)["config.json"]) == CONFIG


def test_config_that_names_its_index(sharded):
    save_file(tensors("layers.0.b.weight"), sharded / "model.safetensors")
    shutil.move(sharded / "model.safetensors.index.json", sharded / "a.safetensors.index.json")
    name_weights(sharded, "a.safetensors.index.json")
    assert len(open_source(sharded).tensors) == 2


NAMED = {
    "missing": ("gone.safetensors", "is not there"),
    "a pickle": ("pytorch_model.bin", "neither a safetensors file"),
    "a number": (3, "neither a safetensors file"),
    "outside": ("../x.safetensors", "outside the checkpoint's folder"),
    "absolute": ("/x.safetensors", "outside the checkpoint's folder"),
    "no text": ("\ud800.safetensors", "outside the checkpoint's folder"),
}


@pytest.mark.parametrize(("name", "message"), NAMED.values(), ids=NAMED.keys())
def test_config_that_names_other_weights(sharded, name, message):
    name_weights(sharded, name)
    with pytest.raises(SourceError, match=message):
        open_source(sharded)


BAD_INDEXES = {
    "no JSON": ("{", "not valid JSON"),
    "a list": ("[]", "no weight_map|JSON mapping"),
    "no map": ("{}", "no weight_map"),
    "map of lists": ('{"weight_map": {"a": []}}', "no weight_map"),
    "another format": ('{"weight_map": {"a": "x.bin"}}', "not a safetensors file"),
    "deep": ('{"weight_map":' + "[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), BAD_INDEXES.values(), ids=BAD_INDEXES.keys())
def test_bad_index(sharded, text, message):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        open_source(sharded)


OUTSIDE = ("/etc/passwd.safetensors", "../x.safetensors", "a/../../x.safetensors", "..\\x", "C:\\x")


@pytest.mark.parametrize("shard", OUTSIDE)
def test_index_that_points_outside(sharded, shard):
    save_file(tensors("layers.0.a.weight"), sharded.parent / "x.safetensors")
    write_index(sharded, layers__0__a__weight=shard)
    assert "outside the checkpoint's folder" in str(refusal(sharded))


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("relative", [False, True])
def test_link_that_leads_outside(sharded, name, relative):
    target = sharded.parent / "secret"
    target.write_text("{}")
    (sharded / name).unlink(missing_ok=True)
    (sharded / name).symlink_to("../secret" if relative else target)
    error = refusal(sharded)
    assert "outside the checkpoint's folder" in error.message
    assert "copy" in error.hint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_link_that_leads_outside(sharded, name):
    shutil.move(sharded / name, sharded.parent / name)
    (sharded / name).symlink_to(sharded.parent / name)
    assert "outside the checkpoint's folder" in str(refusal(sharded))


def test_secret_behind_a_config_is_not_even_parsed(sharded):
    (sharded / "config.json").unlink()
    (sharded / "config.json").symlink_to("/proc/self/status")
    assert "outside the checkpoint's folder" in str(refusal(sharded))


def test_single_file_link_that_leads_outside(tmp_path):
    save_file(tensors("x.weight"), tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    for name in ("model.safetensors", "bare.safetensors"):
        (tmp_path / "model" / name).symlink_to("../secret.safetensors")
        assert "outside the checkpoint's folder" in str(refusal(tmp_path / "model"))
        (tmp_path / "model" / name).unlink()


@pytest.mark.parametrize("inside", ["x.jinja", "x.txt"])
def test_folder_link_that_leads_outside(sharded, inside):
    outside = sharded.parent / "other"
    outside.mkdir()
    (outside / inside).write_text("secret")
    (sharded / "additional_chat_templates").symlink_to(outside)
    assert "outside the checkpoint's folder" in str(refusal(sharded))


def test_link_inside_the_folder_is_fine(sharded):
    shard = sharded / "model-00001-of-00002.safetensors"
    (sharded / "blobs").mkdir()
    shard.rename(sharded / "blobs" / "1")
    shard.symlink_to("blobs/1")
    assert len(open_source(sharded).tensors) == 2


def test_the_whole_folder_may_be_a_link(sharded):
    link = sharded.parent / "link"
    link.symlink_to(sharded)
    assert len(open_source(link).tensors) == 2


def as_hub_cache(folder, repository):
    """The files of a folder, laid out as the Hub's cache does."""
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


def test_hub_cache_links_to_its_own_blobs(sharded, tmp_path):
    snapshot = as_hub_cache(sharded, tmp_path / "hub" / "models--org--name")
    assert len(open_source(snapshot).tensors) == 2
    (snapshot / "model-00001-of-00002.safetensors").resolve().unlink()
    assert "1 of 2 shards are missing" in str(refusal(snapshot))


def test_subfolder_of_a_snapshot(sharded, tmp_path):
    snapshot = as_hub_cache(sharded, tmp_path / "hub" / "models--org--name")
    inner = snapshot / "text_encoder"
    inner.mkdir()
    for path in list(snapshot.iterdir()):
        if path.is_symlink():
            (inner / path.name).symlink_to(f"../{os.readlink(path)}")
    assert len(open_source(inner).tensors) == 2
    (inner / "tokenizer.json").symlink_to("../../../../../secret.json")
    (tmp_path / "secret.json").write_text("{}")
    assert "outside the checkpoint's folder" in str(refusal(inner))


def move_blobs(snapshot, target):
    blobs = snapshot.parent.parent / "blobs"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(blobs, target)
    blobs.symlink_to(target)


@pytest.mark.parametrize("name", ["disk/blobs", "disk/of-this-model"])
def test_blobs_on_another_disk(sharded, tmp_path, name):
    snapshot = as_hub_cache(sharded, tmp_path / "hub" / "models--org--name")
    move_blobs(snapshot, tmp_path / name)
    assert len(open_source(snapshot).tensors) == 2


def test_single_blob_on_another_disk(sharded, tmp_path):
    snapshot = as_hub_cache(sharded, tmp_path / "hub" / "models--org--name")
    blob = snapshot.parent.parent / "blobs" / f"{0:040x}"
    shutil.move(blob, tmp_path / blob.name)
    blob.symlink_to(tmp_path / blob.name)
    assert len(open_source(snapshot).tensors) == 2


@pytest.mark.parametrize("whole", [True, False])
def test_blobs_that_are_no_blobs(sharded, tmp_path, whole):
    """A cache from a stranger, whose `blobs` is a folder of this machine, or has links into it."""
    snapshot = as_hub_cache(sharded, tmp_path / "hub" / "models--org--name")
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret.json").write_text("{}")
    blobs = snapshot.parent.parent / "blobs"
    if whole:
        shutil.copytree(blobs, home, dirs_exist_ok=True)
        shutil.rmtree(blobs)
        blobs.symlink_to(home)
    else:
        (blobs / "secret.json").symlink_to(home / "secret.json")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/secret.json")
    assert "outside the checkpoint's folder" in str(refusal(snapshot))


@pytest.mark.parametrize("repository", ["hub/other", "hub/datasets--org--name"])
def test_only_a_models_cache_may_link_to_blobs(sharded, tmp_path, repository):
    snapshot = as_hub_cache(sharded, tmp_path / repository)
    assert "outside the checkpoint's folder" in str(refusal(snapshot))


def test_hub_cache_may_not_link_to_another_repository(sharded, tmp_path):
    first = as_hub_cache(sharded, tmp_path / "hub" / "models--org--name")
    as_hub_cache(sharded, tmp_path / "hub" / "models--org--other")
    (first / "config.json").unlink()
    other = "../../../models--org--other/blobs/" + f"{0:040x}"
    (first / "config.json").symlink_to(other)
    assert "outside the checkpoint's folder" in str(refusal(first))


def test_matrices_only(tmp_path):
    save_file(tensors("h.0.attn.q", "h.10.attn.q", "h.2.attn.q"), tmp_path / "b.safetensors")
    save_file(tensors("bias", shape=(3,)), tmp_path / "a.safetensors")
    inventory = open_source(tmp_path)
    assert (inventory.kind, inventory.config, inventory.files) == ("matrices", None, ())
    assert [m.name for m in inventory.matrices()] == ["h.0.attn.q", "h.2.attn.q", "h.10.attn.q"]
    assert all(m.coded_by_default for m in inventory.matrices())
    assert [t.name for t in inventory.others()] == ["bias"]
    assert inventory.layers == 11
    alone = open_source(tmp_path / "b.safetensors")
    assert len(alone.tensors) == 3
    assert (alone.path, alone.tensors[0].shard) == (str(tmp_path), "b.safetensors")


def test_matrices_twice(tmp_path):
    save_file(tensors("x"), tmp_path / "a.safetensors")
    save_file(tensors("x"), tmp_path / "b.safetensors")
    assert "'x' is in a.safetensors and in b.safetensors" in str(refusal(tmp_path))


REFUSED = {
    "pickle": (["config.json", "pytorch_model.bin"], "pickled weights", "save_pretrained"),
    "pth": (["consolidated.00.pth", "params.json"], "pickled weights", "safe_serialization"),
    "pt": (["weights.pt"], "pickled weights", "if you trust it"),
    "gguf": (["model-Q4_K_M.gguf"], "GGUF", "safetensors checkpoint"),
    "gguf beside a config": (["config.json", "x.gguf"], "GGUF", None),
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], "adapter", "merge"),
    "shards without index": (
        ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "neither model.safetensors nor",
        "download model.safetensors.index.json",
    ),
    "another file name": (["config.json", "weights.safetensors"], "neither", "rename"),
    "nothing": ([], "holds no checkpoint", "config.json"),
    "only a text": (["README.md"], "holds no checkpoint", None),
}


@pytest.mark.parametrize(("names", "message", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_folder(tmp_path, names, message, hint):
    for name in names:
        (tmp_path / name).write_text(json.dumps(CONFIG))
    error = refusal(tmp_path)
    assert message in error.message
    assert hint is None or hint in error.hint


REFUSED_FILES = {
    "x.bin": "pickled",
    "x.pt": "pickled",
    "x.gguf": "GGUF",
    "x.reallm": "an archive",
    "x.txt": "not a checkpoint",
    "model.safetensors.index.json": "the index",
}


@pytest.mark.parametrize(("name", "message"), REFUSED_FILES.items(), ids=REFUSED_FILES.keys())
def test_refused_file(tmp_path, name, message):
    (tmp_path / name).write_text("{}")
    error = refusal(tmp_path / name)
    assert message in error.message
    assert error.hint


def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    import pickle

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refusal(tmp_path)
    assert not (tmp_path / "boom").exists()


def test_typo_in_a_path(sharded, monkeypatch):
    error = refusal(sharded.parent / "modle")
    assert error.message == "no such file or folder"
    assert error.hint == f"did you mean `{sharded}`?"
    assert "did you mean" in refusal(sharded.parent / "Model" / "config.jsn").hint
    assert "did you mean" in refusal(sharded / "conifg.json").hint
    assert "holds no" in refusal(sharded.parent / "zzzzzz").hint
    monkeypatch.chdir(sharded.parent.parent)
    # Looks like an id of the Hub, but its first part is a folder here.
    assert "did you mean" in refusal(f"{sharded.parent.name}/modell").hint


def test_permission(sharded):
    if not os.geteuid():
        pytest.skip("root may read everything")
    sharded.chmod(0)
    try:
        assert "may not be read" in str(refusal(sharded))
    finally:
        sharded.chmod(0o755)


def test_denied_by_the_system(sharded, monkeypatch):
    """The same complaints where the tests run as root, who may read everything."""

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", deny)
        assert "the file may not be read" in str(refusal(sharded))
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", deny)
        assert "the folder may not be read" in str(refusal(sharded))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.stat", deny)
        assert "may not be read" in str(refusal(sharded))


def test_paths_that_the_system_refuses(tmp_path):
    assert "cannot be read" in str(refusal("/" + "a" * 5000))
    (tmp_path / "nowhere").symlink_to("gone")
    assert "symbolic link is broken" in str(refusal(tmp_path / "nowhere"))
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in str(refusal(tmp_path / "loop"))
    assert "no such file" in str(refusal("~no-such-user/x"))


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_impossible_path(path):
    assert "empty or invalid" in str(refusal(path))


def test_custom_code_is_noted(sharded):
    config = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    (sharded / "config.json").write_text(json.dumps(config))
    assert "program code of its own" in open_source(sharded).notes[0]


BAD_CONFIGS = {"list": "[]", "cut": "{", "deep": '{"a":' + "[" * 100_000, "no text": "\udcff"}


@pytest.mark.parametrize("text", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_bad_config(sharded, text):
    (sharded / "config.json").write_text(text, errors="surrogateescape")
    assert refusal(sharded).location.startswith("config.json")


def test_no_tensors(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    assert "holds no tensors" in str(refusal(tmp_path))
