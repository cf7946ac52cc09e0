"""A decoder is trained once, taken out, and used as it is for another checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm_compiler.errors import FormatError, OutputError, RecipeError, SourceError
from reallm_compiler.evaluate.models import load_for_evaluation
from reallm_compiler.execute.run import compile_model
from reallm_compiler.planning.build import plan
from reallm_compiler.planning.decoders import find_decoder, open_decoder_file
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.reader.decoder import extract_decoder
from reallm_compiler.reader.reconstruct import reconstruct
from reallm_compiler.reader.verify import verify
from reallm_compiler.runtime import load, open_tunable
from reallm_formats import Archive, Writer, layout

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
KEEP = {"match": "*_proj", "except": "*.q_proj", "keep": "source"}
TRAINING = {"encoder_width": 4, "epochs": 4, "batch": 2}
HNERV = {
    "kind": "hnerv",
    "patch": 32,
    "latent": [4, 8, 8],
    "decoder_params": 2000,
    "min_width": 4,
    "kernel_max": 3,
    **TRAINING,
}


def recipe(autoencoder: dict[str, object], **other: object) -> dict[str, object]:
    defaults = {"autoencoder": {"kind": "hnerv", **autoencoder}, **other}
    return {"reallm": 1, "defaults": defaults, "rules": [KEEP]}


@pytest.fixture(scope="module")
def family(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first.reallm`, its `decoder.reallm`, and `other`, a checkpoint."""
    folder = tmp_path_factory.mktemp("family")
    first = folder / "first.reallm"
    compile_model(recipe(HNERV, share="q"), model=tiny_llama, output=first, device="cpu")
    extract_decoder(first, "q", folder / "decoder.reallm")
    shutil.copytree(tiny_llama, folder / "other")
    shard = folder / "other" / "model.safetensors"
    tensors = {name: 1.5 * values for name, values in load_file(shard).items()}
    save_file(tensors, shard, metadata={"format": "pt"})
    return folder


def test_the_file_of_a_decoder(family: Path) -> None:
    path = family / "decoder.reallm"
    assert verify(path) == []
    with Archive.open(path) as archive, open_archive(family / "first.reallm") as model:
        assert archive.kind == "decoder"
        assert archive.document["structure"]["patch"] == 32
        assert archive.document["structure"]["width"] > 1
        for role in ("decoder_codes", "decoder_scales", "decoder_values"):
            assert archive.read(f"share:decoder/{role}") == model.section(f"share:q/{role}")
    with pytest.raises(OutputError, match="exists already"):
        extract_decoder(family / "first.reallm", "q", path)
    with pytest.raises(SourceError, match="no decoder of `k`") as caught:
        extract_decoder(family / "first.reallm", "k", family / "k.reallm")
    assert caught.value.hint == "it has one of `q`"


def test_another_checkpoint_of_the_family(family: Path) -> None:
    output = family / "second.reallm"
    source = recipe({"decoder": str(family / "decoder.reallm"), **TRAINING})
    planned = plan(source, model=family / "other")
    assert any("beside the archive or by `--decoder`" in note for note in planned.notes)
    report = compile_model(source, model=family / "other", output=output, device="cpu")
    assert verify(output) == []
    data = output.read_bytes()
    assert str(family).encode() not in data, "no path goes into the file"
    for row in report.budget.matrices:
        assert row.terms["decoder"] == 0
        assert row.training_operations > 0
    with open_archive(output) as archive:
        assert {spec.role for spec in archive.plan.by_name[NAMES[0]].specs} == {"level", "values"}
        original = load_file(family / "other" / "model.safetensors")
        for name in NAMES:
            weight = original[f"{name}.weight"].float()
            wrong = archive.matrix(name, dtype=torch.float32) - weight
            measured = float(wrong.norm() / weight.norm())
            assert measured == pytest.approx(report.errors[name], rel=1e-4)
    with pytest.raises(SourceError, match="no decoder of `q`") as caught:
        extract_decoder(output, "q", family / "k.reallm")
    assert "of its own" in caught.value.hint
    again = family / "again.reallm"
    compile_model(source, model=family / "other", output=again, device="cpu")
    assert again.read_bytes() == data


def test_an_archive_without_its_decoder_says_what_is_missing(family: Path, tmp_path: Path) -> None:
    source = recipe({"decoder": str(family / "decoder.reallm"), **TRAINING})
    separate = tmp_path / "separate.reallm"
    compile_model(source, model=family / "other", output=separate, device="cpu")
    (tmp_path / "broken.reallm").write_bytes(b"no archive")
    missing = pytest.raises(SourceError, match="was made with is not beside the archive")
    with open_archive(separate) as archive, missing as caught:
        assert archive.tensor("model.norm.weight").shape == (64,)
        archive.matrix(NAMES[0])
    with Archive.open(family / "decoder.reallm") as decoder:
        assert decoder.digest.hex() in caught.value.note
    for given in (family / "decoder.reallm", family):
        with open_archive(separate, decoder=given) as archive:
            assert archive.matrix(NAMES[0]).shape == (64, 64)
    shutil.copy(family / "decoder.reallm", tmp_path / "beside.any")
    with open_archive(separate) as archive:
        assert archive.matrix(NAMES[0]).shape == (64, 64)
        assert [file.path.name for file in archive.find_decoders().values()] == ["beside.any"]


def test_a_folder_of_decoders_that_cannot_be_read(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SourceError, match="cannot be read: Permission denied") as caught:
        find_decoder("sha256:00", family / "other.reallm", tmp_path)
    assert caught.value.location == str(tmp_path)


@pytest.fixture(scope="module")
def separate(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive in a folder of its own, far from the decoder that it needs."""
    path = tmp_path_factory.mktemp("separate") / "separate.reallm"
    source = recipe({"decoder": str(family / "decoder.reallm"), **TRAINING})
    compile_model(source, model=family / "other", output=path, device="cpu")
    return path


def test_every_way_to_read_finds_the_decoder_that_was_named(
    family: Path, separate: Path, tmp_path: Path
) -> None:
    reads: dict[str, Callable[[Path | None], object]] = {
        "load": lambda decoder: load(separate, decoder=decoder),
        "reconstruct": lambda decoder: reconstruct(separate, tmp_path / "out", decoder=decoder),
        "tunable": lambda decoder: open_tunable(separate, decoder=decoder),
        "evaluation": lambda decoder: load_for_evaluation(separate, decoder=decoder),
    }
    for read in reads.values():
        with pytest.raises(SourceError, match="is not beside the archive"):
            read(None)
        read(family)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_another_decoder_is_refused_by_both_digests(
    family: Path, separate: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    first, other = tmp_path / "first.reallm", tmp_path / "other.reallm"
    compile_model(
        {**recipe(HNERV, share="q"), "seed": 1}, model=tiny_llama, output=first, device="cpu"
    )
    extract_decoder(first, "q", other)
    with pytest.raises(SourceError, match="not the decoder that the archive was made") as caught:
        open_archive(separate, decoder=other)
    for path in (family / "decoder.reallm", other):
        with Archive.open(path) as decoder:
            assert decoder.digest.hex() in caught.value.note
    assert caught.value.location == str(other)
    assert "give the file" in caught.value.hint
    with pytest.raises(SourceError, match=f"is not in the folder `{tmp_path}`"):
        open_archive(separate, decoder=tmp_path)
    with pytest.raises(FormatError, match="holds a `model`, not a `decoder`"):
        open_archive(separate, decoder=first)
    with pytest.raises(SourceError, match="there is no such decoder"):
        open_archive(separate, decoder=tmp_path / "nowhere.reallm")
    with pytest.raises(SourceError, match="needs no other file"):
        open_archive(first, decoder=other)


def rewritten(source: Path, target: Path, **structure: object) -> Path:
    """A decoder's file with another structure and the same sections."""
    with Archive.open(source) as archive:
        sections = {name: bytes(archive.read(name)) for name in archive.sections}
        specs = [(entry.name, entry.dtype, entry.shape) for entry in archive.manifest.sections]
        document = dict(archive.document)
    changed = {**document["structure"], **structure}
    document["structure"] = {key: value for key, value in changed.items() if value is not ...}
    file_layout = layout(kind="decoder", features=[], document=document, sections=specs)
    writer = Writer.create(target, file_layout)
    digests = {name: writer.write(name, data) for name, data in sections.items()}
    writer.finish(document, digests)
    writer.close()
    return target


@pytest.mark.parametrize(
    ("structure", "rule", "message"),
    [
        ({"width": 7}, "E2", "the structure asks for share:decoder/decoder_codes"),
        ({"patch": 33}, "E1", "cannot come from a latent"),
        ({"colour": "red"}, "E1", "`colour` is missing here, or not known"),
        ({"latent": ...}, "E1", "`latent` is missing here, or not known"),
        ({"width": None}, "E1", "size once"),
    ],
    ids=["other sections", "no such patch", "unknown key", "missing key", "no width"],
)
def test_a_structure_that_does_not_fit_its_sections_is_damage(
    structure: dict[str, object], rule: str, message: str, family: Path, tmp_path: Path
) -> None:
    path = rewritten(family / "decoder.reallm", tmp_path / "odd.reallm", **structure)
    (damage,) = verify(path)
    assert damage.rule == rule
    assert message in damage.message
    with pytest.raises(FormatError, match=re.escape(message)):
        open_decoder_file(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": "nowhere.reallm"}, "`nowhere.reallm` is not a decoder"),
        ({"decoder": "first.reallm"}, "holds a `model`, not a `decoder`"),
        ({"decoder": "sha256:00"}, "by its file here"),
        ({"decoder": "decoder.reallm", "patch": 64}, "leave out `patch`"),
        ({"decoder": "decoder.reallm", "decoder_params": 5000}, "leave out `decoder_params`"),
    ],
    ids=["missing", "another kind", "digest", "structure", "size"],
)
def test_a_decoder_that_cannot_be_used_is_refused_at_its_line(
    fields: dict[str, object], message: str, family: Path
) -> None:
    path = family / "wrong.yaml"
    path.write_text(
        "reallm: 1\ndefaults:\n  autoencoder:\n    kind: hnerv\n"
        + "".join(f"    {key}: {json.dumps(value)}\n" for key, value in fields.items())
    )
    with pytest.raises(RecipeError) as caught:
        plan(path, model=family / "other")
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.location.startswith(f"{path}:")


def test_share_and_decoder_do_not_go_together(family: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(recipe({"decoder": "d.reallm"}, share="q"), model=family / "other")
    assert "leave out `share`" in str(caught.value)
