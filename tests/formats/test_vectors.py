"""The golden files are read as cases.json says, and the hostile ones are refused by their rule."""

import hashlib
import json
from pathlib import Path

import pytest

from reallm_formats import Archive, FormatError, Writer, layout
from vectors import forge, make, samples

FOLDER = Path(make.HERE)
CASES = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
ACCEPTED = CASES["accepted"]
REJECTED = CASES["rejected"]


def by_name(case):
    return Path(case["file"]).stem


def test_the_corpus_is_not_empty():
    assert len(ACCEPTED) >= 6
    assert len(REJECTED) >= 140


def test_the_corpus_is_what_is_listed():
    """A file that is missing, or that nobody lists, is an error."""
    listed = {case["file"] for case in ACCEPTED + REJECTED}
    stored = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.bin")}
    assert listed == stored
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.bin")) < 300_000


def test_the_maker_makes_these_files():
    for path, data in make.build().items():
        assert (FOLDER / path).read_bytes() == data, path


def test_the_maker_writes_only_when_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(make, "HERE", tmp_path)
    monkeypatch.setattr("sys.argv", ["make.py"])
    make.main()
    assert list(tmp_path.iterdir()) == []
    assert "not written" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["make.py", "--write"])
    make.main()
    assert (tmp_path / "cases.json").read_bytes() == (FOLDER / "cases.json").read_bytes()


@pytest.mark.parametrize("kind", ["adapter", "statistics"])
def test_an_entry_says_the_bytes_of_its_sections(kind):
    with Archive.open(FOLDER / "accepted" / f"{kind}.bin") as archive:
        entries = getattr(archive, kind).matrices
        stored = [
            sum(len(archive.read(name)) for name, _, _ in entry.sections()) for entry in entries
        ]
    assert [entry.nbytes for entry in entries] == stored
    assert any(stored)


@pytest.mark.parametrize("case", ACCEPTED, ids=by_name)
def test_accepted(case):
    path = FOLDER / case["file"]
    normal = case["normal"]
    with Archive.open(path) as archive:
        assert archive.verify() == []
        read = {
            "major": archive.header.major,
            "minor": archive.header.minor,
            "manifest_bytes": archive.header.manifest_bytes,
            "file_bytes": archive.file_bytes,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        assert read == {key: value for key, value in normal.items() if key != "manifest"}
        if archive.header.minor == 0:
            assert make.plain_json(archive.manifest.plain()) == normal["manifest"]
        for section in archive.sections.values():
            assert hashlib.sha256(archive.read(section.name)).digest() == section.sha256
        document = getattr(archive, archive.kind)
        assert document.plain() == {
            key: value for key, value in archive.document.items() if key != "later"
        }


@pytest.mark.parametrize(
    "case", [case for case in ACCEPTED if case["normal"]["minor"] == 0], ids=by_name
)
def test_our_writer_makes_the_same_bytes(case, tmp_path):
    """The vectors were made by another implementation of SPEC.md."""
    path = FOLDER / case["file"]
    with Archive.open(path) as archive:
        rows = [(s.name, s.dtype, s.shape) for s in archive.sections.values()]
        plan = layout(kind=archive.kind, document=archive.document, sections=rows)
        with Writer.create(tmp_path / "copy", plan) as writer:
            digests = {name: writer.write(name, archive.read(name)) for name, *_ in rows}
            writer.finish(archive.document, digests)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("case", REJECTED, ids=by_name)
def test_rejected(case):
    path = FOLDER / case["file"]
    assert path.name.startswith(case["rule"] + "-")
    if case["found"] == "open":
        with pytest.raises(FormatError) as caught:
            Archive.open(path)
        error = caught.value
        assert error.rule == case["rule"]
        assert error.location.startswith(str(path))
        assert error.code == "bad-archive"
        assert not error.message.endswith(".")
    else:
        with Archive.open(path) as archive:
            damages = archive.verify()
            assert [damage.rule for damage in damages] == [case["rule"]]
            assert "byte " in damages[0].location


def test_the_newer_minor_is_refused_under_our_minor():
    data = (FOLDER / "accepted" / "newer-minor.bin").read_bytes()
    manifest = data[128:]
    with pytest.raises(FormatError) as caught:
        Archive(memoryview(forge.join(manifest, b"")))
    assert caught.value.rule == "M2"


def test_a_new_key_of_a_row_passes_under_a_newer_minor():
    def newer(manifest):
        manifest["sections"][0]["later"] = 1
        manifest["document"]["matrices"][0]["later"] = 1

    sections, document = [samples.CODES], samples.model(matrices=[dict(samples.MATRIX)])
    archive = Archive(memoryview(with_keys(sections, document, newer)))
    assert archive.verify() == []
    assert archive.model.matrices[0].name == "up"


def with_keys(sections, document, change):
    manifest = {
        "kind": "model",
        "features": [],
        "sections": [
            {"name": name, "dtype": dtype, "shape": shape, "offset": 0, "sha256": b""}
            for name, dtype, shape, _ in sections
        ],
        "document": document,
    }
    change(manifest)
    datas = [data for *_, data in sections]
    forge.set_offsets(manifest, datas)
    encoded = forge.pack(manifest)
    body = forge.body_of(manifest["sections"], datas, 128 + len(encoded))
    return forge.join(encoded, body, header={"minor": 1})
