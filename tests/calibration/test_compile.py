"""Statistics as an input of a compile: handed to the codec, bound to the checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import reallm_compiler as reallm
from reallm_compiler.codecs import encode_matrix, statistics_file
from reallm_compiler.codecs.feedback_scales import relative_scales
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import (
    CalibrateError,
    CompileError,
    FormatError,
    RecipeError,
    ResumeError,
)
from reallm_formats import Archive, Writer, layout
from reallm_formats.kinds.statistics import parse_statistics

Needing = dict[str, Any]


def test_each_matrix_gets_its_own_statistics(
    tiny_llama: Path,
    measured: Path,
    needing: Needing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[tuple[int, ...], list[Any]] = {}

    def encode(plan: Any, weight: Any, **options: Any) -> Any:
        given.setdefault(tuple(weight.shape), []).append(options["statistics"])
        return encode_matrix(plan, weight, **options)

    monkeypatch.setattr("reallm_compiler.execute.coder.encode_matrix", encode)
    out = tmp_path / "out.reallm"
    reallm.compile(needing, model=tiny_llama, statistics=measured, output=out, workers=1)
    with StatisticsFile(measured) as file:
        wanted = file.read("model.layers.0.mlp.down_proj")
        digest = file.digest
    first = given[64, 176][0]
    assert first.inputs.shape == (176, 176)
    assert first.outputs.shape == (64, 64)
    assert torch.equal(first.weighted_outputs, wanted.weighted_outputs)
    assert torch.equal(first.inputs, first.inputs.T)
    with reallm.open(out) as archive:
        assert archive.provenance["statistics"] == digest.hex()
        assert archive.recipe["statistics"] == "required"
    assert reallm.verify(out) == []


def test_workers_read_the_file_themselves(
    tiny_llama: Path, measured: Path, needing: Needing, tmp_path: Path
) -> None:
    made = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.reallm"
        options = {"statistics": measured, "output": out, "workers": workers}
        reallm.compile(needing, model=tiny_llama, **options)
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_a_compile_that_is_killed_inside_matrices_ends_with_the_same_bytes(
    tiny_llama: Path,
    measured: Path,
    needing: Needing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, out = tmp_path / "whole.reallm", tmp_path / "out.reallm"
    given: Any = {"model": tiny_llama, "statistics": measured, "workers": 1, "progress": False}
    reallm.compile(needing, output=whole, **given)
    for blocks in (2, 11, 17):
        child = os.fork()
        if not child:
            left = iter(range(blocks))

            def kill_after(*args: Any, left: Iterator[int] = left) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return relative_scales(*args)

            monkeypatch.setattr("reallm_compiler.codecs.feedback.relative_scales", kill_after)
            try:
                reallm.compile(needing, output=out, **given)
            finally:
                os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not out.exists()
    reallm.compile(needing, output=out, resume="required", **given)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("name", ["gptq-3bit-act-order", "awq-3bit", "spqr"])
def test_methods_of_others_compile_run_and_err_less_than_rounding(
    name: str, tiny_llama: Path, measured: Path, tmp_path: Path
) -> None:
    """By the errors of the outputs that were measured, of all matrices together."""
    costs = {}
    with StatisticsFile(measured) as file:
        for recipe in (name, "rtn-3bit"):
            out = tmp_path / f"{recipe}.reallm"
            given = measured if recipe == name else None
            reallm.compile(recipe, model=tiny_llama, statistics=given, output=out, workers=1)
            assert reallm.verify(out) == []
            reallm.reconstruct(out, tmp_path / recipe)
            with (
                reallm.open(out) as archive,
                safe_open(tiny_llama / "model.safetensors", "pt") as source,
            ):
                total = 0.0
                for one in archive.names:
                    error = (archive.matrix(one) - source.get_tensor(f"{one}.weight")).double()
                    inputs = file.read(one).inputs.double()
                    share = (error @ inputs * error).sum() / inputs.trace()
                    total += float(share) / error.numel()
            costs[recipe] = total
    assert costs[name] < 0.97 * costs["rtn-3bit"]  # whose groups are half as large


def test_a_recipe_that_needs_statistics_names_the_command(
    tiny_llama: Path, needing: Needing, measured: Path, tmp_path: Path
) -> None:
    recipe = needing
    out = tmp_path / "out.reallm"
    with pytest.raises(CompileError, match="needs statistics") as caught:
        reallm.compile(recipe, model=tiny_llama, output=out)
    assert f"reallm calibrate {tiny_llama} --text FILE -o model.stats" in str(caught.value.hint)
    with pytest.raises(RecipeError, match="asks for none") as wrong:
        reallm.compile({**recipe, "statistics": "none"}, model=tiny_llama, output=out)
    assert "defaults.rounding" in str(wrong.value)
    plain = {"reallm": 1, "extends": "rtn-4bit"}
    with pytest.raises(CompileError, match="the recipe uses none"):
        reallm.compile(plain, model=tiny_llama, statistics=measured, output=out)
    assert not list(tmp_path.iterdir())


def test_statistics_of_other_weights_are_refused_by_name(
    tiny_llama: Path,
    measured: Path,
    needing: Needing,
    tmp_path: Path,
    negate: Callable[[Path, str], None],
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    negate(other, "model.layers.1.self_attn.o_proj.weight")
    recipe = needing
    with pytest.raises(CalibrateError, match=r"layers\.1\.self_attn\.o_proj are of other weights"):
        reallm.compile(recipe, model=other, statistics=measured, output=tmp_path / "o.reallm")
    reallm.compile(
        {**recipe, "rules": [{"match": "*.o_proj", "keep": "source"}]},
        model=other,
        statistics=measured,
        output=tmp_path / "o.reallm",
    )


def test_the_budget_says_how_large_statistics_are(
    tiny_llama: Path, measured: Path, needing: Needing
) -> None:
    plan = reallm.plan(needing, model=tiny_llama)
    (note,) = (note for note in plan.budget().notes if "reallm calibrate" in note)
    size = int(note.split("about ")[1].split(" bytes")[0].replace(",", ""))
    settings = 200  # what the settings take in the manifest, at most
    assert 0 <= measured.stat().st_size - size <= settings
    plan = reallm.plan({"reallm": 1}, model=tiny_llama)
    assert not any("calibrate" in note for note in plan.budget().notes)


def changed(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Statistics with other rows, whose sections hold zeros."""
    with Archive.open(path) as archive:
        document = {**archive.document, "matrices": [*map(dict, archive.document["matrices"])]}
    change(document)
    sections = parse_statistics_sections(document)
    file_layout = layout(kind="statistics", document=document, sections=sections)
    with Writer.create(target, file_layout) as writer:
        digests = {
            name: writer.write(name, bytes(entry.nbytes))
            for name, entry in file_layout.sections.items()
        }
        writer.finish(document, digests)
    return target


def parse_statistics_sections(document: dict[str, Any]) -> list[Any]:
    from reallm_formats.kinds import statistics

    rows = [statistics._parse_row(row, "row", newer=False) for row in document["matrices"]]
    return [section for row in rows for section in row.sections()]


def test_statistics_of_another_shape_or_without_a_matrix_are_refused_by_name(
    tiny_llama: Path, measured: Path, needing: Needing, tmp_path: Path
) -> None:
    def narrow(document: dict[str, Any]) -> None:
        row = next(row for row in document["matrices"] if row["name"].endswith("0.mlp.down_proj"))
        row["shape"] = [64, 88]

    def without(document: dict[str, Any]) -> None:
        document["matrices"] = [
            row for row in document["matrices"] if not row["name"].endswith("1.mlp.down_proj")
        ]

    recipe, out = needing, tmp_path / "o.reallm"
    bad = changed(measured, tmp_path / "narrow.stats", narrow)
    with pytest.raises(CalibrateError, match=r"0\.mlp\.down_proj are of a matrix 64 x 88"):
        reallm.compile(recipe, model=tiny_llama, statistics=bad, output=out)
    bad = changed(measured, tmp_path / "without.stats", without)
    with pytest.raises(CalibrateError, match=r"no statistics of .*1\.mlp\.down_proj"):
        reallm.compile(recipe, model=tiny_llama, statistics=bad, output=out)
    with pytest.raises(FormatError, match="not statistics"):
        reallm.compile(
            recipe,
            model=tiny_llama,
            statistics=compiled(tiny_llama, tmp_path / "m.reallm"),
            output=out,
        )


def compiled(model: Path, output: Path) -> Path:
    reallm.compile({"reallm": 1}, model=model, output=output)
    return output


def test_values_without_a_meaning_are_refused_where_they_are_read(
    tiny_llama: Path, measured: Path, needing: Needing, tmp_path: Path
) -> None:
    """A negative diagonal, a NaN: `verify` and the compile say which section."""
    for name, value in (("outputs", b"\0\0\x80\xbf"), ("weighted_inputs", b"\0\0\xc0\x7f")):
        target = tmp_path / f"{name}.stats"
        section = f"matrix:model.layers.0.mlp.down_proj/{name}"
        with Archive.open(measured) as archive:
            document, rows = archive.document, archive.manifest.rows
            datas = {row[0]: bytes(archive.read(row[0])) for row in rows}
        datas[section] = value + datas[section][4:]
        file_layout = layout(kind="statistics", document=document, sections=rows)
        with Writer.create(target, file_layout) as writer:
            writer.finish(document, {key: writer.write(key, data) for key, data in datas.items()})
        damages = reallm.verify(target)
        assert [damage.rule for damage in damages] == ["P5"]
        assert section in damages[0].location
        with pytest.raises(FormatError, match=r"finite|negative"):
            reallm.compile(
                needing,
                model=tiny_llama,
                statistics=target,
                output=tmp_path / f"{name}.reallm",
                workers=1,
            )
    assert reallm.verify(measured) == []


def test_a_compile_does_not_go_on_with_other_statistics(
    tiny_llama: Path,
    measured: Path,
    settings: dict[str, Any],
    needing: Needing,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other.stats"
    reallm.calibrate(tiny_llama, output=other, **{**settings, "seed": 5})
    recipe, out = needing, tmp_path / "o.reallm"

    def fail(event: Any) -> None:
        if type(event).__name__ == "TaskDone" and event.tasks_done == 2:
            raise RuntimeError("enough")

    options = {"model": tiny_llama, "output": out, "workers": 1}
    with pytest.raises(RuntimeError, match="enough"):
        reallm.compile(recipe, statistics=measured, **options, on_event=fail)
    with pytest.raises(ResumeError, match="the statistics"):
        reallm.compile(recipe, statistics=other, **options)
    reallm.compile(recipe, statistics=measured, **options)


@pytest.mark.parametrize("extent", [1, 2, 255, 256, 257, 600])
def test_a_triangle_is_the_symmetric_matrix_again(extent: int) -> None:
    whole = torch.randn(extent, extent, generator=torch.Generator().manual_seed(1))
    whole = whole + whole.T
    device = torch.device("cpu")
    parts = [
        whole[first:last, :last][mask]
        for first, last, mask in statistics_file.triangle(extent, device)
    ]
    stored = torch.cat(parts)
    rows, columns = torch.tril_indices(extent, extent)
    assert torch.equal(stored, whole[rows, columns])
    assert torch.equal(statistics_file.symmetric(stored, extent), whole)


def test_documents_are_parsed_alone() -> None:
    with pytest.raises(FormatError, match="is missing"):
        parse_statistics({})
