"""Checkpoints in object stores: the same as in a folder, and read by ranges of bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import reallm_compiler as reallm
from reallm_compiler.checkpoint import open_source, store
from reallm_compiler.checkpoint.identity import shard_facts
from reallm_compiler.errors import SourceError
from reallm_compiler.models.weights import Weights

RECIPE = {
    "reallm": 1,
    "defaults": {"scales": {"kind": "absmax"}, "quantizer": {"kind": "uniform", "bits": 4}},
}


@pytest.fixture
def kept(tiny_llama: Path) -> Iterator[str]:
    """The tiny model in a store in memory."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    url = "memory://bucket/models/tiny"
    files.put(str(tiny_llama), "/bucket/models/tiny", recursive=True)
    yield url
    files.rm("/bucket", recursive=True)


def test_a_store_holds_what_the_folder_holds(kept: str, tiny_llama: Path) -> None:
    local = open_source(tiny_llama)
    for url in (kept, f"{kept}/", f"file://{tiny_llama}"):
        found = open_source(url)
        assert found.path == url
        assert replace(found, path=local.path) == local
        assert shard_facts(found) == shard_facts(local)


def test_a_compile_of_a_store_has_the_bytes_of_one_of_the_folder(
    kept: str, tiny_llama: Path, tmp_path: Path
) -> None:
    for name, model in (("a", str(tiny_llama)), ("b", kept)):
        reallm.compile(RECIPE, model=model, output=tmp_path / name, device="cpu", progress=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_are_read_by_ranges(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setattr(store, "FIRST_BYTES", 16)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "open", None)  # no shard is opened
    found = open_source(kept)
    monkeypatch.undo()
    spec = max(found.tensors, key=lambda tensor: tensor.stored_bytes)
    read = []
    original = store.open_shard

    def opened(folder: str, shard: str) -> object:
        file = original(folder, shard)
        readinto = file.readinto
        monkeypatch.setattr(file, "readinto", lambda data: read.append(len(data)) or readinto(data))
        return file

    monkeypatch.setattr("reallm_compiler.models.shard_reader.open_shard", opened)
    Weights(found).read(spec.name)
    assert sum(read) == spec.stored_bytes


def test_a_shard_that_is_gone_or_cut(kept: str) -> None:
    import fsspec

    found = open_source(kept)
    files, name = fsspec.filesystem("memory"), found.tensors[-1].name
    path = "/bucket/models/tiny/model.safetensors"
    files.pipe(path, files.cat(path)[:-1])
    last = max(found.tensors, key=lambda tensor: tensor.begin)
    with pytest.raises(SourceError, match="ends 1 bytes"):
        Weights(found).read(last.name)
    with pytest.raises(SourceError, match=r"ends 1 bytes early") as caught:
        open_source(kept)
    assert "/tmp" not in str(caught.value)
    files.rm(path)
    with pytest.raises(SourceError, match="cannot read a shard"):
        Weights(found).read(name)


def test_what_is_wrong_with_an_address_is_said(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        open_source("memory://bucket/models/none")
    with pytest.raises(SourceError, match="this is a file"):
        open_source(f"{kept}/config.json")
    with pytest.raises(SourceError, match="`nowhere` is no kind of store"):
        open_source("nowhere://bucket/models")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match="holds no checkpoint") as caught:
        open_source(f"file://{tmp_path}/empty")
    assert caught.value.location == f"file://{tmp_path}/empty"
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SourceError, match="not installed") as caught:
        open_source(kept)
    assert "reallm-compiler[ray]" in (caught.value.hint or "")


def test_an_index_cannot_lead_out_of_the_folder(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    index = '{"weight_map": {"a": "../stolen.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    (tmp_path / "stolen.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
    with pytest.raises(SourceError, match="outside the checkpoint's folder"):
        open_source(f"file://{folder}")
