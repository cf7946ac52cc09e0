"""Ids of the Hub, answered from a local cache; nothing here touches the network."""

from __future__ import annotations

import json
import math
import shutil
import struct
from fnmatch import fnmatchcase

import pytest

from reallm_compiler.checkpoint import hub, open_source
from reallm_compiler.errors import SourceError
from reallm_compiler.planning.build import plan

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 96}
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
        "config.json": json.dumps(CONFIG).encode(),
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
    assert "no safetensors of org/name" in inventory.notes[-1]


def test_a_local_folder_wins(cache):
    folder = cache / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "shapes.txt").write_text("")
    with pytest.raises(SourceError, match="holds no checkpoint"):
        open_source("org/name")


@pytest.mark.parametrize("text", ["org/other", "other", "org/name@v2"])
def test_offline_and_not_in_the_cache(cache, text):
    with pytest.raises(
        SourceError, match="not in the local cache, and the Hub cannot be reached"
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
    assert "could not provide the model: disk full" in answer(OSError("disk full"))


class FakeHub:
    """Stands for the client: a repository in a folder, and what was asked of it."""

    def __init__(self, folder, snapshot):
        self.folder, self.snapshot = folder, snapshot
        self.asked = []
        self.headers = []

    def snapshot_download(self, name, *, revision=None, allow_patterns):
        self.asked.append((name, revision, tuple(allow_patterns)))
        for path in self.folder.iterdir():
            if any(fnmatchcase(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.snapshot / path.name)
        return str(self.snapshot)

    def parse_safetensors_file_metadata(self, name, filename, *, revision=None):
        utils = pytest.importorskip("huggingface_hub.utils")
        self.headers.append((name, revision))
        data = (self.folder / filename).read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        tensors = {
            tensor: utils.TensorInfo(**{**entry, "data_offsets": (*entry["data_offsets"],)})
            for tensor, entry in header.items()
            if tensor != "__metadata__"
        }
        return utils.SafetensorsFileMetadata(metadata={}, tensors=tensors)

    def get_safetensors_metadata(self, name, *, revision=None):
        utils = pytest.importorskip("huggingface_hub.utils")
        self.headers.append((name, revision))
        files = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            files[path.name] = self.parse_safetensors_file_metadata(name, path.name)
            self.headers.pop()
        if not files:
            raise pytest.importorskip("huggingface_hub.errors").NotASafetensorsRepoError("none")
        return utils.SafetensorsRepoMetadata(
            metadata=None, sharded=True, weight_map={}, files_metadata=files
        )


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The client of a repository with two shards, of which the cache holds nothing."""
    client = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    folder, snapshot = tmp_path / "repository", tmp_path / REVISION
    folder.mkdir()
    snapshot.mkdir()
    weight_map = {}
    for index, names in enumerate((("embed_tokens", "layers.0.mlp.up_proj"), ("norm",)), start=1):
        shard = f"model-{index:05d}-of-00002.safetensors"
        entries, end = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            shape = [64] if name == "norm" else [96, 64]
            size = 2 * math.prod(shape)
            tensor = f"model.{name}.weight"
            entries[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            weight_map[tensor], end = shard, end + size
        text = json.dumps(entries).encode()
        (folder / shard).write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    found = FakeHub(folder, snapshot)
    monkeypatch.setattr(client, "snapshot_download", found.snapshot_download)
    for call in ("get_safetensors_metadata", "parse_safetensors_file_metadata"):
        monkeypatch.setattr(client, call, getattr(found, call))
    return found


def test_a_plan_downloads_no_weights(fake):
    planned = plan("nf3", model="org/name")
    assert (
        planned.budget().to_json()["totals"]
        == (plan("nf3", model=fake.folder).budget().to_json()["totals"])
    )
    assert not list(fake.snapshot.glob("*.safetensors"))
    assert fake.headers == [("org/name", REVISION)], "of the commit that the config came from"
    assert "were not downloaded" in planned.notes[0]
    inventory = open_source("org/name", weights=False)
    assert not inventory.complete
    assert [name for name, _ in inventory.files] == ["config.json", "tokenizer.json"]


def test_weights_in_the_cache_are_used(fake):
    whole = open_source("org/name@main")
    assert whole.complete
    assert fake.headers == []
    assert fake.asked[-1] == ("org/name", "main", hub.PATTERNS)
    assert open_source("org/name@main", weights=False) == whole
    assert fake.headers == []
    assert fake.asked[-1] == ("org/name", "main", hub.SMALL)
    next(fake.snapshot.glob("*.safetensors")).unlink()
    assert open_source("org/name", weights=False).tensors != ()
    assert len(fake.headers) == 1, "a shard is missing"


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_the_config_names(fake, sharded):
    """Neither would be asked for by its name: the config is read first."""
    first, second = sorted(fake.folder.glob("*.safetensors"))
    name, count = "b.safetensors", 2
    first.rename(fake.folder / name)
    second.unlink()
    index = fake.folder / "model.safetensors.index.json"
    if sharded:
        weight_map = dict.fromkeys(("model.embed_tokens.weight", "model.layers.0.x"), name)
        name = "c.safetensors.index.json"
        (fake.folder / name).write_text(json.dumps({"weight_map": weight_map}))
    index.unlink()
    config = {**CONFIG, "transformers_weights": name}
    (fake.folder / "config.json").write_text(json.dumps(config))
    planned = open_source("org/name", weights=False)
    assert len(fake.headers) == 1
    whole = open_source("org/name")
    assert whole.complete
    assert len(planned.tensors) == len(whole.tensors) == count
    assert open_source("org/name", weights=False) == whole


def test_headers_are_not_trusted(fake):
    index = fake.folder / "model.safetensors.index.json"
    written = index.read_text()
    index.write_text(written.replace("model.norm.weight", "model.other.weight"))
    assert "model.norm.weight" in str(open_source("org/name", weights=False).notes)
    index.write_text(written)
    shard = fake.folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b"[96, 64]", b"[96, 65]"))
    with pytest.raises(SourceError, match=r"needs 12,480 bytes for BF16"):
        open_source("org/name", weights=False)


def test_a_repository_with_a_config_alone(fake):
    pytest.importorskip("torch")
    for path in fake.folder.glob("model*"):
        path.unlink()
    inventory = open_source("org/name", weights=False)
    assert not inventory.complete
    assert "no safetensors of org/name" in inventory.notes[-1]


def test_a_config_in_the_cache_is_enough_offline(cache):
    pytest.importorskip("torch")
    repository = cache / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / REVISION
    assert open_source("org/name", weights=False).complete, "all of it is there"
    (snapshot / "model.safetensors").unlink()
    assert not open_source("org/name", weights=False).complete
    index = {"weight_map": {"layers.0.q.weight": "model-00001-of-00001.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="the Hub cannot be reached"):
        open_source("org/name", weights=False)


def test_a_shard_that_the_client_cannot_parse(fake, monkeypatch):
    errors = pytest.importorskip("huggingface_hub.errors")
    import huggingface_hub

    def refuse(*_, **__):
        raise errors.SafetensorsParsingError("header too large")

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", refuse)
    with pytest.raises(SourceError, match="not a valid safetensors file"):
        open_source("org/name", weights=False)


def test_a_connection_that_breaks_between_config_and_headers(fake, monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise hub.network_errors()[0]("no route to the host")

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", refuse)
    with pytest.raises(SourceError, match="the Hub cannot be reached"):
        open_source("org/name", weights=False)
