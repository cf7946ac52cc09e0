"""Ids of the Hub, answered from a local cache; nothing here touches the network."""

from __future__ import annotations

import json
import struct

import pytest

from reallm_compiler.errors import SourceError
from reallm_compiler.sources import hub, open_source

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the Hub's client that holds org/name, and no connection."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / REVISION
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    text = b'{"layers.0.q.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    files = {
        "model.safetensors": struct.pack("<Q", len(text)) + text + bytes(8),
        "config.json": json.dumps({"model_type": "llama"}).encode(),
    }
    for name, data in files.items():
        (repository / "blobs" / f"blob-{name}").write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/blob-{name}")
    return tmp_path


@pytest.mark.parametrize("text", ["org/name", "org/name@main", f"org/name@{REVISION}"])
def test_from_the_cache(cache, text):
    inventory = open_source(text)
    assert [t.name for t in inventory.tensors] == ["layers.0.q.weight"]
    assert inventory.path.endswith(REVISION)
    assert [name for name, _ in inventory.files] == ["config.json"]


def test_a_repository_without_safetensors(cache):
    pytest.importorskip("torch")
    repository = cache / "hub" / "models--org--name"
    (repository / "snapshots" / REVISION / "model.safetensors").unlink()
    inventory = open_source("org/name")
    assert not inventory.complete
    assert "no safetensors on the Hub" in inventory.notes[-1]


def test_a_local_folder_wins(cache):
    folder = cache / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "shapes.txt").write_text("")
    with pytest.raises(SourceError, match="holds no checkpoint"):
        open_source("org/name")


@pytest.mark.parametrize("text", ["org/other", "other", "org/name@v2"])
def test_offline_and_not_in_the_cache(cache, text):
    with pytest.raises(
        SourceError, match="not in the local cache, and the Hub is out of reach"
    ) as e:
        open_source(text)
    assert e.value.hint
    assert e.value.location == text


def test_near_miss_of_a_local_name(cache):
    (cache / "mymodel").mkdir()
    with pytest.raises(SourceError, match="no such folder") as caught:
        open_source("mymodle")
    assert "did you mean" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("gpt2", True),
        ("org/name", True),
        ("org/name-2.5_b@main", True),
        ("./org/name", False),
        ("/org/name", False),
        ("a/b/c", False),
        ("~/x", False),
        ("org/..", False),
        ("org/name@../../x", False),
        ("x.json", False),
        ("a b", False),
        ("", False),
    ],
)
def test_what_looks_like_an_id(text, is_id):
    assert hub.is_hub_id(text) == is_id


def test_only_safe_files_are_asked_for():
    assert not [pattern for pattern in hub.PATTERNS if pattern.endswith((".bin", ".py", "*"))]


def test_errors_of_the_client(cache, monkeypatch):
    errors = pytest.importorskip("huggingface_hub.errors")
    import huggingface_hub

    def answer(error):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(SourceError) as caught:
            open_source("org/name")
        return str(caught.value)

    def client_error(kind):
        return kind.__new__(kind)

    assert "neither a local folder nor" in answer(client_error(errors.RepositoryNotFoundError))
    assert "gated" in answer(client_error(errors.GatedRepoError))
    assert "no revision" in answer(client_error(errors.RevisionNotFoundError))
    assert "did not deliver the model: disk full" in answer(OSError("disk full"))
