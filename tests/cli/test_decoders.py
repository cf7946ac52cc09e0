"""Decoders in files of their own: shown, checked, and named to the commands that need them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from reallm_cli.commands.inspect_decoder import parts_of
from reallm_cli.main import main
from reallm_compiler.codecs.autoencoders.hnerv_net import (
    assemble,
    decode,
    plain_shapes,
    stage_shapes,
)
from reallm_compiler.planning.decoders import open_decoder_file
from reallm_compiler.storage import hnerv_structure as structure

NAME = "model.layers.0.self_attn.q_proj"
KEYS = {
    "format",
    "kind",
    "features",
    "digest",
    "provenance",
    "structure",
    "parts",
    "parameters",
    "patch_macs",
    "sections",
    "header_bytes",
    "manifest_bytes",
    "padding_bytes",
    "file_bytes",
}
RECIPE = """\
reallm: 1
defaults:
  residual: {kind: low_rank, rank: 2}
  autoencoder:
    kind: hnerv
    encoder_width: 4
    epochs: 2
"""
BUILT = """\
    patch: 32
    latent: [4, 8, 8]
    decoder_params: 2000
    min_width: 4
    kernel_max: 3
  share: q
"""
KEEP = "rules: [{match: '*_proj', except: '*.q_proj', keep: source}]\n"


@pytest.fixture(scope="module")
def family(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first.reallm`, its `q.decoder`, and `away/second.reallm`, which needs it."""
    folder = tmp_path_factory.mktemp("family")
    (folder / "first.yaml").write_text(RECIPE + BUILT + KEEP)
    (folder / "second.yaml").write_text(RECIPE + "    decoder: q.decoder\n" + KEEP)
    (folder / "away").mkdir()
    first, second = folder / "first.reallm", folder / "away" / "second.reallm"
    for args in (
        ["compile", folder / "first.yaml", "--model", tiny_llama, "-o", first, "--device", "cpu"],
        ["decoder", first, "q", "-o", folder / "q.decoder"],
        ["compile", folder / "second.yaml", "--model", tiny_llama, "-o", second],
    ):
        assert main(list(map(str, args))) == 0
    return folder


def test_inspect_of_a_decoder(run, family):
    path = family / "q.decoder"
    result = run("inspect", path)
    assert (result.code, result.err) == (0, "")
    document = run("inspect", path, "--json").json
    assert set(document) == KEYS
    assert document["kind"] == "decoder"
    block = result.out.partition("\nstructure\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(block) == document["structure"]
    assert document["structure"]["patch"] == 32
    assert document["provenance"]["reallm"] in result.out
    assert document["digest"] in result.out
    assert f"{document['parameters']:,} parameters" in result.out
    taken = sum(section["bytes"] for section in document["sections"])
    own = sum(document[key] for key in ("header_bytes", "manifest_bytes", "padding_bytes"))
    assert taken + own == document["file_bytes"] == path.stat().st_size
    for section in document["sections"]:
        assert section["name"] in result.out
        assert section["sha256"][:16] in result.out


def test_the_parts_are_those_of_the_network(run, family):
    stage = open_decoder_file(family / "q.decoder").stage
    parts = parts_of(stage)
    width = structure.decoder_width(stage, (1, 1), shared=True)
    plain = [torch.zeros(shape) for shape in plain_shapes(stage, width)]
    stages = [torch.zeros(shape) for shape in stage_shapes(stage, width)]
    stored = run("inspect", family / "q.decoder", "--json").json
    counted = sum(part.numel + part.values for part in parts)
    assert counted == sum(values.numel() for values in plain + stages)
    assert counted == stored["parameters"] == structure.decoder_parameters(stage, width)
    assert stored["parts"] == [part.to_json() for part in parts]
    patch = decode(stage, assemble(plain, stages), torch.zeros(1, *stage.latent))
    assert tuple(patch.shape[-2:]) == parts[-1].makes == stage.patch_shape
    codes, scales, values = stored["sections"]
    assert codes["shape"] == [sum(part.numel for part in parts)]
    assert values["shape"] == [sum(part.values for part in parts)]
    assert scales["shape"] == [sum(made.channels for made in structure.stages(stage, width))]


def test_one_section_of_a_decoder(run, family):
    path = family / "q.decoder"
    for name in ("decoder_codes", "share:decoder/decoder_codes"):
        assert run("inspect", path, name, "--json").json["name"] == "share:decoder/decoder_codes"
        assert "share:decoder/decoder_codes" in run("inspect", path, name).out
    missing = run("inspect", path, "decoder_code")
    assert missing.code == 2
    assert "did you mean `decoder_codes`" in missing.err
    assert run("inspect", path, "x").err.endswith(
        "hint: it holds decoder_codes, decoder_scales, decoder_values\n"
    )
    assert run("inspect", path, "--decoder", path).code == 2
    budget = run("budget", path)
    assert budget.code == 5
    assert "archive of kind `decoder`" in budget.err


def test_verify_of_a_decoder(run, family, tmp_path):
    path = family / "q.decoder"
    assert run("verify", path).out == f"intact: 3 sections, {path.stat().st_size:,} bytes\n"
    section = run("inspect", path, "decoder_scales", "--json").json
    copy = tmp_path / "q.decoder"
    data = bytearray(path.read_bytes())
    data[section["offset"]] ^= 1
    copy.write_bytes(data)
    result = run("verify", copy)
    assert result.code == 1
    assert result.out.startswith("section share:decoder/decoder_scales, byte ")


def test_inspect_says_which_decoder_an_archive_uses(run, family):
    second, decoder = family / "away" / "second.reallm", family / "q.decoder"
    digest = run("inspect", decoder, "--json").json["digest"]
    assert run("inspect", second, "--json").json["decoders"] == [{"digest": digest, "path": None}]
    assert "not beside this archive; see `--decoder`" in run("inspect", second).out
    for given in (decoder, family):
        named = run("inspect", second, "--decoder", given, "--json").json["decoders"]
        assert named == [{"digest": digest, "path": str(decoder)}]
    out = run("inspect", second, "--decoder", family).out
    assert f"uses decoder  {digest}" in out
    assert f"in `{decoder}`" in out
    assert run("inspect", family / "first.reallm", "--json").json["decoders"] == []


def words_for(command: str, archive: Path, model: Path, text: Path, output: Path) -> list[object]:
    tuning = ["--text", text, "--window", 16, "--stage", "e2e", "--set", "e2e.steps=1"]
    return {
        "reconstruct": ["reconstruct", archive, "-o", output],
        "eval": ["eval", archive, "--text", text, "--window", 32],
        "finetune": ["finetune", archive, "--model", model, "-o", output, *tuning],
        "heatmap": ["inspect", archive, "--heatmap", NAME, "-o", f"{output}.png", "--model", model],
    }[command]


@pytest.mark.parametrize("command", ["reconstruct", "eval", "finetune", "heatmap"])
def test_each_command_takes_the_decoder_that_is_named(
    command, run, family, tiny_llama, text, tmp_path
):
    if command == "heatmap":
        pytest.importorskip("matplotlib")
    second, decoder = family / "away" / "second.reallm", family / "q.decoder"
    args = words_for(command, second, tiny_llama, text, tmp_path / "out")
    lonely = run(*args)
    assert lonely.code == 4
    assert "is not beside the archive" in lonely.err
    assert "`--decoder PATH`" in lonely.err
    assert list(tmp_path.iterdir()) == []
    wrong = run(*args, "--decoder", family / "first.reallm")
    assert wrong.code == 5
    assert "not a `decoder`" in wrong.err
    named = run(*args, "--decoder", decoder)
    assert named.code == 0, named.err
    shutil.copy(decoder, second.with_name("beside.decoder"))
    try:
        if command == "eval":
            assert run(*args).out == named.out
        else:
            args = words_for(command, second, tiny_llama, text, tmp_path / "again")
            assert run(*args).code == 0
    finally:
        second.with_name("beside.decoder").unlink()


def test_a_decoder_for_what_needs_none(run, family, tiny_llama, text, tmp_path):
    first, decoder = family / "first.reallm", family / "q.decoder"
    refused = run("reconstruct", first, "-o", tmp_path / "out", "--decoder", decoder)
    assert refused.code == 4
    assert "needs no other file" in refused.err
    assert "leave out `--decoder`" in refused.err
    folder = run("eval", tiny_llama, "--text", text, "--decoder", decoder)
    assert folder.code == 4
    assert "a decoder is for archives" in folder.err
