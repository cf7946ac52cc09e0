"""Hostile checkpoints and archives through the command line: refused in words, nothing touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from reallm_cli.main import main
from reallm_formats import Writer, layout

TENSORS = {"model.layers.0.mlp.up_proj.weight": np.ones((8, 16), np.float32)}
CONFIG = {"model_type": "llama", "tie_word_embeddings": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in one shard with an index, and a secret beside it."""
    made = tmp_path / "model"
    made.mkdir()
    save_file(TENSORS, made / "part.safetensors")
    (made / "config.json").write_text(json.dumps(CONFIG))
    index(made, "part.safetensors")
    (tmp_path / "secret.txt").write_text("the secret")
    return made


def index(folder: Path, shard: str) -> None:
    weight_map = dict.fromkeys(TENSORS, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def header(folder: Path, entry: dict[str, Any], size: int = 64) -> None:
    """A shard with this entry in its header and `size` bytes behind it."""
    text = json.dumps({next(iter(TENSORS)): entry}).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(size)
    (folder / "part.safetensors").write_bytes(data)


def outside(shard: str) -> Callable[[Path], None]:
    return lambda folder: index(folder, shard)


def linked(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(folder.parent / "secret.txt")


def shaped(shape: list[Any], end: int = 64) -> Callable[[Path], None]:
    return lambda folder: header(folder, {"dtype": "F32", "shape": shape, "data_offsets": [0, end]})


def pickled(folder: Path) -> None:
    for name in ("part.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")


def long_header(folder: Path) -> None:
    (folder / "part.safetensors").write_bytes(b"\xff" * 8 + b"{}")


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "index: parent": (outside("../part.safetensors"), "outside the checkpoint's folder"),
    "index: absolute": (outside("/etc/x.safetensors"), "outside the checkpoint's folder"),
    "index: no safetensors": (outside("config.json"), "not a safetensors file"),
    "link: tokenizer": (linked("tokenizer.json"), "outside the checkpoint's folder"),
    "link: vocabulary": (linked("tokenizer.model"), "outside the checkpoint's folder"),
    "shape: past all memory": (shaped([1 << 40, 1 << 40]), "part.safetensors"),
    "shape: negative": (shaped([-4, -4]), "part.safetensors"),
    "shape: not of its bytes": (shaped([4, 5]), "part.safetensors"),
    "shape: a number": (shaped([4.5, 2]), "part.safetensors"),
    "shape: past the end": (shaped([1 << 20, 4], 1 << 24), "part.safetensors"),
    "header: longer than anything": (long_header, "part.safetensors"),
    "pickle": (pickled, "save_pretrained(NEW_FOLDER"),
}


@pytest.mark.parametrize(("spoil", "message"), HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("command", ["compile", "budget"])
def test_hostile_checkpoint(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    message: str,
    command: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    spoil(folder)
    before = sorted(os.listdir(folder.parent))
    given = [command, "rtn-4bit", "--model", str(folder)]
    code = main([*given, "-o", "out.reallm"] if command == "compile" else given)
    captured = capsys.readouterr()
    assert code == 4, captured.err
    assert message in " ".join(captured.err.split()), captured.err
    assert "the secret" not in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert not captured.out
    assert sorted(os.listdir(folder.parent)) == before


def test_the_checkpoint_is_sound_before_it_is_spoiled(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["budget", "rtn-4bit", "--model", str(folder)]) == 0
    assert "up_proj" in capsys.readouterr().out


ESCAPES = ("../stolen", "a/../../stolen", "/tmp/stolen", "a\\..\\stolen", "C:stolen", "a/./b", "")


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("what", ["file", "tensor"])
def test_names_that_would_leave_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, what: str
) -> None:
    """An archive made by hand, its digests right, whose names point out of the folder."""
    path = tmp_path / "evil.reallm"
    evil_archive(path, what, name)
    inside = tmp_path / "inside"
    inside.mkdir()
    code = main(["reconstruct", str(path), "-o", str(inside / "out")])
    captured = capsys.readouterr()
    # Names of tensors become keys in a safetensors file, never paths: they may hold anything.
    assert code in ((5,) if what == "file" else (0, 5)), captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.rglob("*stolen*"))
    assert not Path("/tmp/stolen").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.reallm", "inside"]
    assert {entry.name for entry in inside.iterdir()} <= ({"out"} if code == 0 else set())


@pytest.mark.parametrize("what", ["file", "tensor"])
def test_a_name_that_harms_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """The hand-made archive is refused for its name and for nothing else."""
    name = "vocab.txt" if what == "file" else "innocent.txt"
    evil_archive(tmp_path / "good.reallm", what, name)
    code = main(["reconstruct", str(tmp_path / "good.reallm"), "-o", str(tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "out" / name).exists() == (what == "file")


@pytest.mark.parametrize("name", ["code.py", "pytorch_model.bin", "model.safetensors.index.json"])
def test_files_that_no_compile_embeds_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    evil_archive(tmp_path / "evil.reallm", "file", name)
    code = main(["reconstruct", str(tmp_path / "evil.reallm"), "-o", str(tmp_path / "out")])
    assert code == 5
    assert "not a config or tokenizer file" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.reallm"]


def evil_archive(path: Path, what: str, name: str) -> None:
    """An archive of one file or one kept tensor of this name.

    The container package itself may refuse to lay such a name out: then the good name of equal
    length is laid out, and replaced in the file with all digests repaired.
    """
    from hashlib import sha256

    plain = "x" * len(name)
    document: dict[str, Any] = {
        "recipe": {"reallm": 1},
        "methods": [],
        "matrices": [],
        "ties": {},
        "provenance": {},
    }
    title = {"file": f"file:{plain}", "tensor": f"tensor:{plain}"}
    dtype, data = ("u8", b"{}") if what == "file" else ("f32", bytes(8))
    shape = (2,)
    plan = layout(
        kind="model",
        features=[],
        document=document,
        sections=[(title[what] if name else title[what] + "x", dtype, shape)],
    )
    section = plan.manifest.sections[0].name
    writer = Writer.create(path, plan)
    digest = writer.write(section, data)
    writer.finish(document, {section: digest})
    writer.close()
    raw = bytearray(path.read_bytes())
    if name:
        offset = raw.index(section.encode())
        raw[offset : offset + len(section)] = section.replace(plain, name).encode()
    else:
        raw = raw.replace(section.encode(), section.replace("x", "\0").encode())
    size = int.from_bytes(raw[16:24], "little")
    zeroed = raw[:32] + bytes(32) + raw[64 : 128 + size]
    raw[32:64] = sha256(zeroed).digest()
    path.write_bytes(raw)
