"""The reader: one matrix alone, a folder, a ready model - and all three agree."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import reallm_compiler as reallm
from reallm_compiler.errors import FormatError, OutputError, SourceError
from reallm_compiler.models import shards
from reallm_compiler.reader.verify import verify
from tests.conftest import logits

EXACT = {"reallm": 1, "defaults": {}}
"""No residual, no quantizer: everything in its own type."""


@pytest.fixture(scope="module")
def archive_path(
    tiny_llama: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("archive") / "out.reallm"
    reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu")
    return path


def from_folder(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def test_errors_are_those_of_the_decoded_matrices(archive_path: Path, tiny_llama: Path) -> None:
    source = load_file(tiny_llama / "model.safetensors")
    with reallm.open(archive_path) as archive:
        assert len(archive.names) == 14
        for name in archive.names:
            weight = source[name + ".weight"].double()
            decoded = archive.matrix(name, dtype=torch.float64)
            error = float((weight - decoded).norm() / weight.norm())
            assert error == pytest.approx(archive.errors[name], rel=1e-6), name


def test_kept_tensors_are_equal(archive_path: Path, tiny_llama: Path) -> None:
    source = load_file(tiny_llama / "model.safetensors")
    with reallm.open(archive_path) as archive:
        assert set(archive.tensor_names) == set(source)
        for name in set(source) - {coded + ".weight" for coded in archive.names}:
            assert torch.equal(archive.tensor(name), source[name])
            assert archive.tensor(name).dtype == source[name].dtype


def test_a_tied_name_is_its_tensor(archive_path: Path) -> None:
    with reallm.open(archive_path) as archive:
        assert archive.plan.ties == {"lm_head.weight": "model.embed_tokens.weight"}
        head = archive.tensor("lm_head.weight")
        assert torch.equal(head, archive.tensor("model.embed_tokens.weight"))


def test_load_and_reconstruct_give_equal_logits(archive_path: Path, tmp_path: Path) -> None:
    model, tokenizer = reallm.load(archive_path)
    folder = reallm.reconstruct(archive_path, tmp_path / "model")
    again = from_folder(folder)
    assert torch.equal(logits(model), logits(again))
    assert model.dtype == again.dtype == torch.bfloat16
    assert tokenizer.decode(tokenizer("three red apples")["input_ids"]) == "three red apples"


def test_without_quantizer_the_model_is_the_original(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "exact.reallm"
    report = reallm.compile(EXACT, model=tiny_llama, output=path, device="cpu")
    assert set(report.errors.values()) == {0.0}
    model, _ = reallm.load(path)
    assert torch.equal(logits(model), logits(from_folder(tiny_llama)))


def test_reconstruct_in_shards(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    folder = reallm.reconstruct(archive_path, tmp_path / "model")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert torch.equal(logits(reallm.load(archive_path)[0]), logits(from_folder(folder)))


def test_an_existing_folder_is_safe(archive_path: Path, tmp_path: Path) -> None:
    folder = reallm.reconstruct(archive_path, tmp_path / "model")
    with pytest.raises(OutputError, match="exists already"):
        reallm.reconstruct(archive_path, folder)
    reallm.reconstruct(archive_path, folder, force=True)
    (folder / "thesis.docx").write_text("years of work")
    with pytest.raises(OutputError, match="reallm did not write"):
        reallm.reconstruct(archive_path, folder, force=True)
    assert (folder / "thesis.docx").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_original_is_never_replaced(
    archive_path: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    original = shutil.copytree(tiny_llama, tmp_path / "model")
    before = {path: path.read_bytes() for path in original.iterdir()}
    with pytest.raises(OutputError, match="reallm did not write"):
        reallm.reconstruct(archive_path, original, force=True)
    assert {path: path.read_bytes() for path in original.iterdir()} == before
    # Nor a folder that a library saved into after reallm wrote it.
    folder = reallm.reconstruct(archive_path, tmp_path / "back")
    model = from_folder(folder)
    model.save_pretrained(folder)
    with pytest.raises(OutputError, match="reallm did not write"):
        reallm.reconstruct(archive_path, folder, force=True)


def test_a_disk_that_refuses_is_reported_and_leaves_nothing(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(OutputError, match=r"cannot write.*No space left"):
        reallm.reconstruct(archive_path, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_one_damaged_matrix_is_named_and_the_rest_is_readable(
    archive_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.reallm"
    data = bytearray(archive_path.read_bytes())
    with reallm.open(archive_path) as archive:
        first, second = archive.names[:2]
        entry = archive.sections_of(first)[0]
    data[entry.offset] ^= 4
    path.write_bytes(data)
    (damage,) = verify(path)
    assert first in damage.location
    with reallm.open(path) as archive:
        archive.matrix(second)
        with pytest.raises(FormatError, match=r"section .*"):
            archive.matrix(first)


def test_opening_touches_no_section(archive_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reallm_formats import Archive

    read: list[str] = []
    original = Archive.read

    def spy(self: Archive, name: str) -> memoryview:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(Archive, "read", spy)
    with reallm.open(archive_path) as archive:
        assert read == []
        name = archive.names[3]
        archive.matrix(name)
        assert {section.split("/")[0] for section in read} == {f"matrix:{name}"}


def test_unknown_names_bring_the_nearest(archive_path: Path) -> None:
    with reallm.open(archive_path) as archive:
        with pytest.raises(SourceError, match="no coded matrix") as caught:
            archive.matrix("model.layers.0.mlp.upproj")
        assert "model.layers.0.mlp.up_proj" in str(caught.value.hint)
        with pytest.raises(SourceError, match="no tensor"):
            archive.tensor("nothing")


@pytest.mark.parametrize("name", ["missing.reallm", "."])
def test_verify_of_what_is_no_archive(tmp_path: Path, name: str) -> None:
    (damage,) = verify(tmp_path / name)
    assert damage.message


def test_matrices_without_a_config(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weight = torch.randn(24, 40)
    (tmp_path / "bare").mkdir()
    save_file({"h.0.attn.q": weight}, tmp_path / "bare" / "matrices.safetensors")
    path = tmp_path / "bare.reallm"
    reallm.compile("nf4", model=tmp_path / "bare", output=path, device="cpu")
    with pytest.raises(SourceError, match="without a config"):
        reallm.load(path)
    folder = reallm.reconstruct(path, tmp_path / "out")
    decoded = load_file(folder / "model.safetensors")["h.0.attn.q"]
    assert float((decoded - weight).norm() / weight.norm()) < 0.15


def test_digests_checked_in_the_background(archive_path: Path, tmp_path: Path) -> None:
    wanted = logits(reallm.load(archive_path)[0])
    assert torch.equal(logits(reallm.load(archive_path, verify="later")[0]), wanted)
    path = tmp_path / "damaged.reallm"
    with reallm.open(archive_path) as archive:
        name = archive.names[-1]
        section = archive.sections_of(name)[0]
    data = bytearray(archive_path.read_bytes())
    data[section.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        reallm.load(path, verify="later")
    archive = reallm.open(path, verify="later")
    with suppress(FormatError):  # mostly decoded from bytes that are not yet checked
        archive.matrix(name)
    with pytest.raises(FormatError, match="damaged") as caught:
        archive.check()
    assert section.name in str(caught.value.location)
    archive.close()
    with pytest.raises(FormatError, match="damaged"), reallm.open(path, verify="later") as archive:
        archive.matrix(name)


def test_damage_of_an_adapter_checked_in_the_background(archive_path: Path, tmp_path: Path) -> None:
    """The archive is whole, and what closes both says what is wrong with the adapter."""
    from reallm_compiler.reader.adapter import open_adapter
    from reallm_formats import AdapterDocument, AdapterEntry, Writer, layout

    with reallm.open(archive_path) as archive:
        name, base = archive.names[0], archive.digest
        p, q = archive.plan.by_name[name].shape
    row = AdapterEntry(name=name, shape=(p, q), rank=0, dtype="f16", gain=True)
    document = AdapterDocument(base=base, matrices=(row,), settings={}, provenance={})
    file_layout = layout(kind="adapter", document=document.plain(), sections=document.sections())
    path = tmp_path / "adapter"
    with Writer.create(path, file_layout) as out:
        (section,) = file_layout.sections.values()
        digest = out.write(section.name, bytes(section.nbytes))
        out.finish(document.plain(), {section.name: digest})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with open_adapter(path, verify="later") as adapter:
        adapter.parts(name)
        with pytest.raises(FormatError, match="damaged"):
            adapter.check()
    archive = reallm.open(archive_path, adapter=path, verify="later")
    archive.matrix(name)
    with pytest.raises(FormatError, match="damaged") as caught:
        archive.check()
    assert str(path) in str(caught.value.location)
    archive.close()
