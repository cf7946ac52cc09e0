"""`compile`, `inspect`, `verify`, `reconstruct`: an archive's life, as a user sees it."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sys
from itertools import accumulate

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from reallm_cli.main import main
from reallm_compiler.reader.verify import verify
from reallm_formats import Archive
from tests.faults.watched import CONTROL
from vectors import forge

SECTION_KEYS = {"name", "dtype", "shape", "offset", "bytes", "sha256"}
MATRIX_KEYS = {
    "decode_macs",
    "training_operations",
    "name",
    "shape",
    "transposed",
    "paper_bits",
    "exact_bits",
    "bytes",
    "terms",
    "relative_error",
    "plan",
    "sections",
}
INSPECT_KEYS = {
    "format",
    "kind",
    "features",
    "digest",
    "provenance",
    "recipe",
    "matrices",
    "totals",
    "notes",
    "warnings",
    "tensors",
    "files",
    "ties",
    "decoders",
}
NAME = "model.layers.0.self_attn.q_proj"


def test_compile_talks_on_stderr_and_shows_the_archive_on_stdout(
    run, tiny_recipe, tiny_llama, archive, tmp_path
):
    path = tmp_path / "out.reallm"
    result = run(
        "compile", tiny_recipe, "--model", tiny_llama, "-o", path, "--workers", 1, "--device", "cpu"
    )
    assert result.code == 0
    starts = [line.split(" ")[0] for line in result.err.splitlines()]
    assert starts[:4] == ["file", "disk", "memory", "device"]
    assert "compile:" in starts
    assert starts[-1] == "wrote"
    assert result.out == run("inspect", path).out
    assert path.read_bytes() == archive.read_bytes()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["out.reallm"]


def test_compile_does_not_replace_without_force(run, tiny_recipe, tiny_llama, tmp_path):
    path = tmp_path / "out.reallm"
    path.write_text("precious")
    args = ("compile", tiny_recipe, "--model", tiny_llama, "-o", path)
    result = run(*args)
    assert result.code == 6
    assert result.out == ""
    assert result.err == (
        f"error: the output exists already\n  at: {path}\n\n"
        "hint: choose another name with `-o`, or overwrite it with `--force`\n"
    )
    assert path.read_text() == "precious"
    assert run(*args, "--force").code == 0
    assert run("verify", path).code == 0


def test_only_tries_some_matrices_and_writes_nothing(
    run, tiny_recipe, tiny_llama, archive, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = run("compile", tiny_recipe, "--model", tiny_llama, "--only", "*.q_proj")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    whole = {row["name"]: row for row in run("inspect", archive, "--json").json["matrices"]}
    for row in rows:
        assert row[-1] == f"{whole[row[0]]['relative_error']:.4f}"
    assert result.err.endswith("a trial: nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_only_without_a_match_is_reported(run, tiny_recipe, tiny_llama):
    result = run("compile", tiny_recipe, "--model", tiny_llama, "--only", "*.q_prj")
    assert result.code == 7
    assert "matches no coded matrix" in result.err


def test_resume_required_needs_remains(run, tiny_recipe, tiny_llama, tmp_path):
    path = tmp_path / "out.reallm"
    result = run("compile", tiny_recipe, "--model", tiny_llama, "-o", path, "--resume", "required")
    assert result.code == 8
    assert "no interrupted run" in result.err


def test_inspect_json_has_exactly_the_documented_keys(run, archive):
    result = run("inspect", archive, "--json")
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert set(document) == INSPECT_KEYS
    assert document["format"] == {"major": 1, "minor": 0}
    assert document["totals"]["file_bytes"] == archive.stat().st_size
    data = archive.read_bytes()
    for matrix in document["matrices"]:
        assert set(matrix) == MATRIX_KEYS
        assert 0 < matrix["relative_error"] < 1
        assert sum(section["bytes"] for section in matrix["sections"]) == matrix["bytes"]
        for section in matrix["sections"]:
            assert set(section) == SECTION_KEYS
            stored = data[section["offset"] : section["offset"] + section["bytes"]]
            assert hashlib.sha256(stored).hexdigest() == section["sha256"]
    for section in document["tensors"] + document["files"]:
        assert set(section) == SECTION_KEYS
    assert document["ties"] == {"lm_head.weight": "model.embed_tokens.weight"}


def test_inspect_shows_the_recipe_as_yaml(run, archive):
    out = run("inspect", archive).out
    block = out.partition("\nrecipe\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(block) == run("inspect", archive, "--json").json["recipe"]
    assert out.startswith("archive\n  file ")
    for word in ("mean error", "max error", "paper bits", "exact bits", "version 1.0"):
        assert word in out
    assert "tied: lm_head.weight is model.embed_tokens.weight" in out


@pytest.mark.parametrize("name", [NAME, f"{NAME}.weight"])
def test_inspect_of_one_matrix(run, archive, name):
    result = run("inspect", archive, name)
    assert result.code == 0
    plan = result.out.partition("\nplan\n")[2].partition("\n\n")[0]
    row = run("inspect", archive, name, "--json").json
    assert set(row) == MATRIX_KEYS
    assert yaml.safe_load(plan) == row["plan"]
    assert f"  error       {row['relative_error']:.4f}\n" in result.out
    for section in row["sections"]:
        assert f"{section['name']} " in result.out
        assert section["sha256"][:16] in result.out


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("model.norm", "tensor:model.norm.weight"),
        ("model.norm.weight", "tensor:model.norm.weight"),
        ("tensor:model.norm.weight", "tensor:model.norm.weight"),
        ("config.json", "file:config.json"),
    ],
)
def test_inspect_of_a_kept_tensor_or_a_file(run, archive, name, section):
    assert run("inspect", archive, name, "--json").json["name"] == section
    assert section in run("inspect", archive, name).out


def test_inspect_of_an_unknown_name_shows_the_nearest(run, archive):
    result = run("inspect", archive, "model.layers.0.self_attn.q_prj")
    assert result.code == 2
    assert f"did you mean `{NAME}`" in result.err
    tied = run("inspect", archive, "lm_head")
    assert tied.code == 2
    assert f"`reallm inspect {archive} model.embed_tokens.weight` shows it" in tied.err


def test_a_wrong_archive_path_names_the_nearest(run, archive):
    for command in ("inspect", "verify", "budget"):
        result = run(command, archive.with_name("tny.reallm"))
        assert result.code == 5
        assert result.err == (
            f"error: there is no such archive\n  at: {archive.with_name('tny.reallm')}\n\n"
            f"hint: did you mean `{archive}`?\n"
        )
    folder = run("verify", archive.parent)
    assert folder.code == 5
    assert f"did you mean `{archive}`?" in folder.err


def test_verify_of_an_intact_archive(run, archive):
    result = run("verify", archive)
    with Archive.open(archive) as opened:
        sections = len(opened.sections)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"intact: {sections} sections, {archive.stat().st_size:,} bytes\n"
    assert run("verify", archive, "--json").json == {"ok": True, "damages": []}


def test_verify_names_what_is_damaged(run, archive, tmp_path):
    sections = run("inspect", archive, NAME, "--json").json["sections"]
    codes = next(section for section in sections if section["name"].endswith("/codes"))
    copy = tmp_path / "copy.reallm"
    data = bytearray(archive.read_bytes())
    data[codes["offset"] + 5] ^= 16
    copy.write_bytes(data)
    result = run("verify", copy)
    assert result.code == 1
    assert f"section matrix:{NAME}/codes, byte {codes['offset']}" in result.out
    assert len(result.out.splitlines()) == 1
    assert result.err.startswith(f"not intact: 1 damaged range in `{copy}`\n\nhint: ")
    document = run("verify", copy, "--json")
    assert document.code == 1
    assert document.json["ok"] is False
    assert [set(damage) for damage in document.json["damages"]] == [{"rule", "location", "message"}]
    # What reads the damaged section refuses; what does not, works.
    assert run("inspect", copy).code == 0
    assert run("reconstruct", copy, "-o", tmp_path / "back").code == 5
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data[:-10], "cut short"),
        (lambda data: data + b"tail", "longer"),
        (lambda data: b"", "empty"),
        (lambda data: b"reallm: 1\n" * 30, "looks like text"),
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "digest differs"),
    ],
    ids=["cut", "tail", "empty", "text", "manifest"],
)
def test_a_broken_file_is_reported_without_a_traceback(run, archive, tmp_path, change, expected):
    copy = tmp_path / "copy.reallm"
    copy.write_bytes(change(archive.read_bytes()))
    result = run("verify", copy)
    assert result.code == 1
    assert expected in result.out
    for command in ("inspect", "budget"):
        refused = run(command, copy)
        assert (refused.code, refused.out) == (5, "")
        assert expected in refused.err


def test_reconstruct_writes_a_folder_and_prints_its_path(run, archive, tmp_path):
    folder = tmp_path / "back"
    result = run("reconstruct", archive, "-o", folder)
    assert result.code == 0
    assert result.out == f"{folder}\n"
    assert result.err.startswith("wrote ")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    again = run("reconstruct", archive, "-o", folder)
    assert again.code == 6
    assert "--force" in again.err
    shutil.rmtree(folder)
    assert run("reconstruct", archive, "-o", folder, "--force").code == 0


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_verify_shows_a_bar_on_a_terminal_alone(run, archive, monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    size = sum(
        section["bytes"]
        for name in ("tensors", "files")
        for section in run("inspect", archive, "--json").json[name]
    )
    assert main(["verify", str(archive)]) == 0
    shown = screen.getvalue()
    done, whole = map(
        int,
        re.findall(r"verify.* ([\d,]+) of ([\d,]+) bytes", shown.replace(",", ""))[-1],
    )
    assert done == whole > size
    assert "error" not in shown


def test_verify_tells_how_many_bytes_it_has_checked(archive):
    calls = []
    assert verify(archive, progress=lambda done, total: calls.append((done, total))) == []
    with Archive.open(archive) as opened:
        sections = [entry.nbytes for entry in opened.manifest.sections]
    assert {total for _, total in calls} == {sum(sections)}
    assert [done for done, _ in calls] == list(accumulate(sections))


def test_verify_of_a_forged_archive(run, tmp_path):
    """Its digests are right, so another copy will not help."""
    path = tmp_path / "forged.reallm"
    path.write_bytes(forge.archive([("file:run.py", "u8", [0], b"")]))
    result = run("verify", path)
    assert (result.code, result.out) == (
        1,
        "section file:run.py: `run.py` is not a config or tokenizer file (P7)\n",
    )
    assert "hint: its digests are right, so it was written like this" in result.err
    assert run("verify", path, "--quick").code == 0
    assert run("verify", path, "--json").json["damages"][0]["rule"] == "P7"
    refused = run("inspect", path)
    assert (refused.code, refused.out) == (5, "")
    assert f"at: {path}: section file:run.py" in refused.err


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_what_an_archive_says_steers_no_terminal(run, tmp_path, args):
    path = tmp_path / "forged.reallm"
    evil = "x\x1b]0;title\x07\x1b[2J\x9b5m\u202e\nintact: 1 section\r"
    document = {
        "provenance": {evil: evil, "source": bytes(32)},
        "recipe": {evil: [evil], "rules": [{"match": evil, "note": evil}]},
    }
    path.write_bytes(forge.archive([], document))
    result = run("inspect", path, *args)
    assert result.code == 0
    assert not CONTROL.search(result.out + result.err)
    assert not any(line.strip().startswith("intact") for line in result.out.splitlines())


def test_notes_stand_where_a_checkpoint_is_compiled(run, tmp_path):
    """What is odd in a checkpoint is not said in a budget alone."""
    shapes = {"model.embed_tokens.weight": (40, 8), "layers.0.a.weight": (8, 8)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "x", "vocab_size": 32}')
    done = run("compile", "nf4", "--model", tmp_path, "-o", tmp_path / "x.reallm")
    assert done.code == 0
    assert "note    model.embed_tokens.weight has 40 rows" in done.err
