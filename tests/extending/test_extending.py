"""A kind of another package goes through everything without an edit outside its three files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from reallm_compiler.errors import RegistryError

HERE = Path(__file__).parent
RUN = """
import json, sys
from reallm_cli.main import main
sys.exit(next((code for code in map(main, json.loads(sys.argv[1])) if code), 0))
"""
RECIPE = """\
reallm: 1
defaults:
  scales: {kind: rms, per: row}
  quantizer: {kind: lloyd_max, bits: 3}
"""


def reallm(site: Path | None, *commands: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Command lines, in one process, with the made-up package installed in `site`, or without.

    The first that fails is the last.
    """
    paths = [*([str(site)] if site else []), *sys.path]
    return subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([[*map(str, args)] for args in commands])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def test_the_kind_goes_through_every_command(
    tiny_llama: Path, installed: Path, tmp_path: Path
) -> None:
    recipe, archive = tmp_path / "r.yaml", tmp_path / "a.reallm"
    recipe.write_text(RECIPE)
    done = reallm(installed, ["budget", recipe, "--model", tiny_llama, "--json"])
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)["totals"]["file_bytes"]
    commands: list[list[str | Path]] = [
        ["compile", recipe, "--model", tiny_llama, "-o", archive, "--workers", "2"],
        ["verify", archive],
        ["inspect", archive],
        ["reconstruct", archive, "-o", tmp_path / "model"],
        ["survey", tiny_llama, "--recipe", recipe],
    ]
    done = reallm(installed, *commands)
    assert done.returncode == 0, done.stderr
    assert archive.stat().st_size == planned


def test_without_the_package_its_recipe_and_its_archive_are_refused_by_name(
    tiny_llama: Path, installed: Path, tmp_path: Path
) -> None:
    recipe, archive = tmp_path / "r.yaml", tmp_path / "a.reallm"
    recipe.write_text(RECIPE)
    done = reallm(installed, ["compile", recipe, "--model", tiny_llama, "-o", archive])
    assert done.returncode == 0, done.stderr
    for args in (["budget", recipe, "--model", tiny_llama], ["verify", archive]):
        done = reallm(None, args)
        assert done.returncode not in (0, 70)
        assert "lloyd_max" in done.stderr + done.stdout


@pytest.mark.usefixtures("lloyd_max")
def test_hints_schema_and_tables_know_the_kind() -> None:
    from reallm_compiler.recipe import json_schema
    from reallm_compiler.recipe.vocabulary import stages

    assert "lloyd_max" in stages()["quantizer"]
    assert "LloydMaxQuantizer" in json_schema()["$defs"]


@pytest.mark.usefixtures("lloyd_max")
@pytest.mark.parametrize("share", [None, "all"])
def test_its_sections_keep_its_size_law(share: str | None) -> None:
    from reallm_compiler.codecs import decode_matrix, encode_matrix, fit_shared
    from reallm_compiler.stages import MatrixPlan

    plan = MatrixPlan.model_validate(
        {
            "quantizer": {"kind": "lloyd_max", "bits": 4},
            "transform": [{"kind": "hadamard"}],
            "residual": {"kind": "low_rank", "rank": 1},
            "share": share,
        }
    )
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    shared = fit_shared([plan], [weight], seed=0) if share else {}
    coded = encode_matrix(plan, weight, seed=0, source_dtype="f32", shared=shared)
    sections = {**coded.sections, **shared}
    decoded = decode_matrix(plan, (16, 24), "f32", sections, dtype=torch.float32)
    error = float((decoded - weight).norm() / weight.norm())
    assert error == pytest.approx(coded.relative_error, rel=1e-5)
    assert error < 0.12


@pytest.mark.usefixtures("lloyd_max")
def test_the_property_tests_draw_it_and_its_plans_keep_the_size_law() -> None:
    from reallm_compiler.stages import MatrixPlan
    from tests.codecs.size_law import check_plan
    from tests.plans import some_fields

    coded = number = 0
    while coded < 2 and number < 1000:
        number += 1
        fields = some_fields(random.Random(number))
        if fields["quantizer"]["kind"] != "lloyd_max":
            continue
        with contextlib.suppress(ValidationError):  # kinds that do not go together
            coded += check_plan(MatrixPlan.model_validate(fields), (8, 16), number)
    assert coded == 2


@pytest.mark.usefixtures("lloyd_max")
def test_it_codes_a_block_of_columns_at_a_time() -> None:
    from reallm_compiler.codecs.contract import Latent
    from reallm_compiler.codecs.registry import codec_of
    from reallm_compiler.stages import MatrixPlan

    plan = MatrixPlan.model_validate({"quantizer": {"kind": "lloyd_max", "bits": 3}})
    values = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    latent = Latent(
        values=values,
        scales=None,
        range="free",
        source_dtype="f32",
        generator=torch.Generator(),
        quantizer=plan.quantizer,
    )
    codec = codec_of(plan.quantizer)
    tables = codec.fit(plan.quantizer, latent)
    whole, parts = (codec.coder(plan.quantizer, latent, tables) for _ in range(2))
    whole.quantize(values, slice(0, 20))
    for first in range(0, 20, 6):
        span = slice(first, min(first + 6, 20))
        parts.quantize(values[:, span], span)
    assert torch.equal(whole.sections()["codes"], parts.sections()["codes"])


def test_a_kind_of_a_known_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from reallm_compiler.stages import ExternalKind, VectorQuantizer, register

    with pytest.raises(RegistryError, match="vq"):
        register(
            ExternalKind(stage="quantizer", params=VectorQuantizer, size_law="a:b", codec="a:b")
        )
    with pytest.raises(RegistryError, match="coder"):
        ExternalKind(stage="coder", params=VectorQuantizer, size_law="a:b", codec="a:b")


def test_a_kind_without_a_size_law_fails() -> None:
    from reallm_compiler.stages.registry import check_complete
    from reallm_compiler.storage.registry import SIZE_LAWS

    check_complete(SIZE_LAWS, "size law")
    short = {params: entry for params, entry in SIZE_LAWS.items() if params.__name__ != "Hadamard"}
    with pytest.raises(RegistryError, match="hadamard"):
        check_complete(short, "size law")


def test_an_unregistered_kind_is_no_plan() -> None:
    from reallm_compiler.stages import MatrixPlan

    with pytest.raises(ValidationError, match="lloyd_max"):
        MatrixPlan.model_validate({"quantizer": {"kind": "lloyd_max", "bits": 3}})


def test_the_page_shows_the_files_as_they_are() -> None:
    page = (HERE.parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    for name in ("stage", "storage", "codec"):
        text = (HERE / "lloyd_max" / f"{name}.py").read_text(encoding="utf-8")
        assert f"```python\n{text}```" in page, name
