"""A decoder is trained once, taken out, and used as it is for another checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm_compiler.errors import OutputError, RecipeError, SourceError
from reallm_compiler.execute.run import compile_model
from reallm_compiler.plan.build import plan
from reallm_compiler.reader.archive import open_archive
from reallm_compiler.reader.decoder import extract_decoder
from reallm_compiler.reader.verify import verify
from reallm_formats import Archive

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
    with pytest.raises(SourceError, match="no decoder of `k`"):
        extract_decoder(family / "first.reallm", "k", family / "k.reallm")


def test_another_checkpoint_of_the_family(family: Path) -> None:
    output = family / "second.reallm"
    words = recipe({"decoder": str(family / "decoder.reallm"), **TRAINING})
    planned = plan(words, model=family / "other")
    assert any("must stand beside" in note for note in planned.notes)
    report = compile_model(words, model=family / "other", output=output, device="cpu")
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
    again = family / "again.reallm"
    compile_model(words, model=family / "other", output=again, device="cpu")
    assert again.read_bytes() == data


def test_an_archive_without_its_decoder_says_what_is_missing(family: Path, tmp_path: Path) -> None:
    words = recipe({"decoder": str(family / "decoder.reallm"), **TRAINING})
    lonely = tmp_path / "lonely.reallm"
    compile_model(words, model=family / "other", output=lonely, device="cpu")
    (tmp_path / "broken.reallm").write_bytes(b"no archive")
    missing = pytest.raises(SourceError, match="the decoder that this archive was made with")
    with open_archive(lonely) as archive, missing:
        archive.matrix(NAMES[0])
    with open_archive(lonely, decoders=[family / "decoder.reallm"]) as archive:
        assert archive.matrix(NAMES[0]).shape == (64, 64)
    shutil.copy(family / "decoder.reallm", tmp_path / "beside.reallm")
    with open_archive(lonely) as archive:
        assert archive.matrix(NAMES[0]).shape == (64, 64)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decoder": "nowhere.reallm"}, "`nowhere.reallm` is no decoder"),
        ({"decoder": "first.reallm"}, "holds a `model`, not a `decoder`"),
        ({"decoder": "sha256:00"}, "by its file here"),
        ({"decoder": "decoder.reallm", "patch": 64}, "leave out `patch`"),
        ({"decoder": "decoder.reallm", "decoder_params": 5000}, "leave out `decoder_params`"),
    ],
    ids=["missing", "another kind", "digest", "structure", "size"],
)
def test_a_decoder_that_cannot_be_used_is_refused_at_its_line(
    fields: dict[str, object], words: str, family: Path
) -> None:
    path = family / "wrong.yaml"
    path.write_text(
        "reallm: 1\ndefaults:\n  autoencoder:\n    kind: hnerv\n"
        + "".join(f"    {key}: {json.dumps(value)}\n" for key, value in fields.items())
    )
    with pytest.raises(RecipeError) as caught:
        plan(path, model=family / "other")
    (problem,) = caught.value.problems
    assert words in problem.message
    assert problem.location.startswith(f"{path}:")


def test_share_and_decoder_do_not_go_together(family: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(recipe({"decoder": "d.reallm"}, share="q"), model=family / "other")
    assert "leave out `share`" in str(caught.value)
