"""`reallm report`: what is in the file, and that it is nothing but a page."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reallm_cli.main import main
from vectors import forge

VOID = {"meta", "br"}
LOADING = {"src", "srcset", "action", "formaction", "data", "poster", "background", "xlink:href"}
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'\u202e\x1b[2J"


class Page(HTMLParser):
    """A page as a reader of its elements sees it; ends must fit their starts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._caption = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")
        elif tag == "data":
            self.tables[self._caption][-1][-1] = dict(attrs)["value"] or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
        if self.open and self.open[-1] == "caption":
            self._caption += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[self._caption][-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.words)


def page(run, path: Path, *args: object) -> Page:
    """The page that `reallm report` writes."""
    done = run("report", *args, "-o", path, "--force")
    assert done.code == 0, done.err
    assert done.out == f"{path}\n"
    return Page(path.read_text(encoding="utf-8"))


def test_its_figures_are_those_of_inspect(run, archive, tmp_path):
    found = page(run, tmp_path / "r.html", archive)
    known = run("inspect", archive, "--json").json
    totals = known["totals"]
    (row,) = found.tables["models"][1:]
    assert row[0] == archive.stem
    assert [json.loads(value) for value in row[1:5]] == [
        totals[key] for key in ("file_bytes", "exact_bits", "paper_bits", "model_bits")
    ]
    assert row[-1] == known["digest"][:16]
    errors = [one["relative_error"] for one in known["matrices"]]
    assert json.loads(row[7]) == max(errors)
    rows = {row[0]: row[2:] for row in found.tables[f"{archive.stem}, storage order"][1:]}
    assert {name: [json.loads(value) for value in values] for name, values in rows.items()} == {
        one["name"]: [one[key] for key in ("paper_bits", "exact_bits", "bytes", "relative_error")]
        for one in known["matrices"]
    }
    terms: dict[str, int] = {}
    for one in known["matrices"]:
        for term, size in one["terms"].items():
            terms[term.replace("_", " ")] = terms.get(term.replace("_", " "), 0) + size
    sizes, roles = (
        {row[0]: json.loads(row[1]) for row in found.tables[caption][1:]}
        for caption in ("bytes by part", "bytes by role")
    )
    assert sizes["all"] == totals["file_bytes"]
    assert sizes["kept tensors"] == totals["kept_bytes"]
    assert sizes["manifest"] == totals["manifest_bytes"]
    assert {name: size for name, size in terms.items() if size} == {
        name: sizes[name] for name, size in terms.items() if size
    }
    assert roles["all"] == totals["coded_bytes"] + totals["kept_bytes"]
    heat = found.tables[f"{archive.stem}: relative error"]
    column = heat[0].index("mlp.\ndown_proj")
    layer = next(row for row in heat if row[0] == "layer 1")
    name = "model.layers.1.mlp.down_proj"
    wanted = next(one for one in known["matrices"] if one["name"] == name)
    assert json.loads(layer[column]) == wanted["relative_error"]


def test_nothing_in_it_comes_from_elsewhere(run, archive, tmp_path):
    found = page(run, tmp_path / "r.html", archive)
    assert not {tag for tag, _ in found.elements} & {"link", "img", "iframe", "object", "base"}
    for tag, attributes in found.elements:
        assert not LOADING & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert (attributes.get("href") or "#").startswith("#")
    content = (tmp_path / "r.html").read_text()
    assert not re.search(r"url\(|@import|https?:|//[a-z]", content.replace("// A press", ""))
    policy = next(
        attributes["content"]
        for tag, attributes in found.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "http" not in policy


def test_it_can_be_read_by_everyone(run, archive, tmp_path):
    found = page(run, tmp_path / "r.html", archive)
    tags = [tag for tag, _ in found.elements]
    assert ("html", {"lang": "en"}) in found.elements
    assert tags.count("h1") == tags.count("main") == 1
    assert tags.index("h1") < tags.index("h2") < tags.index("h3")
    drawings = [attributes for tag, attributes in found.elements if tag == "svg"]
    assert drawings
    for attributes in drawings:
        assert attributes.get("aria-hidden") or attributes.get("aria-label")
    anchors = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    links = {(attributes.get("href") or "")[1:] for tag, attributes in found.elements if tag == "a"}
    assert links <= anchors
    assert len(links) > 5
    style = (tmp_path / "r.html").read_text()
    assert "prefers-color-scheme: dark" in style
    assert 'content="width=device-width, initial-scale=1"' in style


def test_a_hostile_archive_is_text(run, tmp_path):
    path = tmp_path / "<b onclick=alert(3)>.reallm"
    document = {
        "provenance": {EVIL: EVIL, "source": bytes(32)},
        "recipe": {EVIL: [EVIL], "rules": [{"match": EVIL, "note": EVIL}]},
    }
    name = "tensor:model.<img src=x onerror=alert(1)>.weight"
    path.write_bytes(forge.archive([(name, "f32", [2, 2], bytes(16))], document))
    found = page(run, tmp_path / "r.html", path)
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert "b" not in tags
    assert "<img src=x onerror=alert(1)>" in found.text
    assert "<b onclick=alert(3)>" in found.text
    content = (tmp_path / "r.html").read_text()
    assert "\u202e" not in content
    assert "\x1b" not in content


def test_the_same_archives_give_the_same_bytes(run, archive, tmp_path):
    other = tmp_path / "other.reallm"
    shutil.copy(archive, other)
    page(run, tmp_path / "a.html", archive, other)
    found = page(run, tmp_path / "b.html", archive, other)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [row[0] for row in found.tables["models"][1:]] == [archive.stem, "other"]


def test_beside_the_original_and_on_a_text(run, archive, tiny_llama, text, tmp_path):
    args = ("--reference", tiny_llama, "--text", text, "--window", 32)
    found = page(run, tmp_path / "r.html", archive, *args)
    ours, original = found.tables["quality on the text"][1:]
    known = run(
        "eval", archive, "--text", text, "--reference", tiny_llama, "--window", 32, "--json"
    )
    assert json.loads(ours[1]) == known.json["perplexity"]
    assert json.loads(ours[2]) == known.json["kl"]
    assert json.loads(original[1]) == known.json["reference_perplexity"]
    captions = "".join(found.words)
    for word in ("Spectra", "Distributions", f"residual of {archive.stem}", "norm of W - W^"):
        assert word in captions
    assert "is not the model" not in captions


def test_the_frontier_of_an_allocation(run, archive, tmp_path):
    points = [{"bytes": 1000, "bits": 2.0, "kl": 0.1}, {"bytes": 2000, "bits": 4.0, "kl": 0.01}]
    planned = {"scope": "file", "targets": points[:1], "frontier": points, "uniform": points}
    (tmp_path / "f.json").write_text(json.dumps(planned))
    found = page(run, tmp_path / "r.html", archive, "--frontier", tmp_path / "f.json")
    assert "mixes: 0.1 at 1000 to 0.01 at 2000, least 0.01, largest 0.1" in found.text
    (tmp_path / "f.json").write_text(json.dumps({"scope": "file"}))
    refused = run("report", archive, "--frontier", tmp_path / "f.json", "-o", tmp_path / "x")
    assert refused.code == 4
    assert "not what `reallm allocate --json` prints" in refused.err


def test_another_model_is_noticed(run, archive, tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    weights = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    done = run("report", archive, "--reference", other, "-o", tmp_path / "r.html")
    assert done.code == 0
    assert "warning: The reference is not the model" in done.err


def test_what_is_no_model_is_refused(run, archive, tiny_llama, tmp_path):
    output = ("-o", tmp_path / "r.html")
    for args, code, said in (
        ((tmp_path / "none.reallm",), 5, "there is no such archive"),
        ((archive, archive), 4, "given twice"),
        ((tiny_llama / "config.json",), 5, "looks like JSON text"),
        ((archive, "--window", 8), 2, "go with `--text FILE`"),
        ((archive, "--reference", tmp_path / "none"), 4, "none"),
    ):
        refused = run("report", *args, *output)
        assert (refused.code, refused.out) == (code, ""), refused.err
        assert said in refused.err
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "r.html").write_text("mine")
    assert run("report", archive, *output).code == 6
    assert (tmp_path / "r.html").read_text() == "mine"
    assert run("report", archive, "-o", archive, "--force").code == 6


@pytest.fixture(scope="module")
def adapter(archive, tiny_llama, text, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "one.adapter"
    settings = ("window=32", "block.epochs=1", "e2e.steps=2", "e2e.checks=2", "e2e.batch=2")
    args = ["finetune", archive, "--model", tiny_llama, "--text", text, "-o", path]
    assert main(list(map(str, [*args, *(f"--set={one}" for one in settings)]))) == 0
    return path


def test_an_adapter_beside_its_base(run, archive, adapter, text, tmp_path):
    found = page(run, tmp_path / "r.html", archive, adapter, "--text", text, "--window", 32)
    (row,) = found.tables["adapters"][1:]
    assert row[-1] == archive.stem
    known = run("inspect", adapter, "--json").json
    assert json.loads(row[1]) == known["file_bytes"]
    rows = found.tables["one"][1:]
    assert [(one[0], *map(json.loads, one[1:])) for one in rows] == [
        (one["name"], one["rank"], one["rounding_error"], one["bytes"]) for one in known["matrices"]
    ]
    base, tuned = found.tables["quality on the text"][1:3]
    assert json.loads(tuned[1]) != json.loads(base[1])
    for said in ("held-out loss end to end", "held-out error of each block"):
        assert said in found.text
    losses = known["provenance"]["tuned_losses"].split(", ")
    assert [loss.split(" ")[0] for loss in losses] == ["0", "1", "2"]
    for loss in losses:
        assert f"{float(loss.split(' ')[1]):.4g}" in found.text
    alone = page(run, tmp_path / "a.html", adapter)
    assert "models" not in alone.tables
    assert run("report", adapter, "-o", tmp_path / "b.html", "--text", text).code == 0
