"""What was coded is taken over with the same bytes; what a folder holds is never trusted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.checkpoint import open_source
from reallm_compiler.execute.coder import CODED
from reallm_compiler.runs.cache import Cache
from reallm_compiler.runs.state import load_state, save_state
from reallm_compiler.search.damage import measure

RECIPE: dict[str, Any] = {
    "reallm": 1,
    "statistics": "required",
    "defaults": {
        "transform": [{"kind": "hadamard", "sides": "both"}],
        "scales": {"kind": "absmax", "per": "row"},
        "quantizer": {"kind": "uniform", "bits": 3},
        "rounding": {"kind": "feedback"},
    },
    "rules": [{"match": ["*.layers.1.*", "*.mlp.*"], "keep": "source"}],
}
SHARING: dict[str, Any] = {
    "reallm": 1,
    "defaults": {
        "scales": {"kind": "rms", "per": "tensor"},
        "quantizer": {"kind": "trellis", "bits": 2, "state_bits": 6, "iterations": 2},
        "share": "model",
    },
}


def compiled(recipe: dict[str, Any], model: Path, output: Path, **rest: Any) -> bytes:
    reallm.compile(
        recipe, model=model, output=output, device="cpu", force=True, progress=False, **rest
    )
    return output.read_bytes()


@pytest.fixture(scope="module")
def plain(
    tiny_llama: Path, tiny_statistics: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The archive of a compile without a cache."""
    output = tmp_path_factory.mktemp("plain") / "out.reallm"
    return compiled(RECIPE, tiny_llama, output, statistics=tiny_statistics)


@pytest.fixture(scope="module")
def filled(
    tiny_llama: Path, tiny_statistics: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache that a compile has filled."""
    folder = tmp_path_factory.mktemp("filled")
    given: dict[str, Any] = {"statistics": tiny_statistics, "cache": folder / "cache"}
    compiled(RECIPE, tiny_llama, folder / "out.reallm", **given)
    return folder / "cache"


def test_compile_takes_over_what_was_measured(
    tiny_llama: Path,
    tiny_statistics: Path,
    tmp_path: Path,
    coded: list[tuple[int, int]],
    plain: bytes,
) -> None:
    plan = reallm.plan(RECIPE, model=tiny_llama)
    jobs = {matrix.name: [matrix.plan] for matrix in plan.matrices}
    measure(
        jobs, open_source(str(tiny_llama)), statistics=tiny_statistics, cache=tmp_path / "cache"
    )
    assert len(coded) == len(jobs)
    given: dict[str, Any] = {"statistics": tiny_statistics, "cache": tmp_path / "cache"}
    assert compiled(RECIPE, tiny_llama, tmp_path / "out.reallm", **given) == plain
    assert len(coded) == len(jobs)  # no matrix was coded twice


def test_a_group_is_taken_over_if_the_same_share(
    tiny_llama: Path, tmp_path: Path, coded: list[tuple[int, int]]
) -> None:
    given: dict[str, Any] = {"cache": tmp_path / "cache"}
    first = compiled(SHARING, tiny_llama, tmp_path / "out.reallm", **given)
    count = len(coded)
    assert compiled(SHARING, tiny_llama, tmp_path / "out.reallm", **given) == first
    assert len(coded) == count
    fewer = {**SHARING, "rules": [{"match": "*.1.mlp.*", "keep": "source"}]}
    compiled(fewer, tiny_llama, tmp_path / "out.reallm", **given)
    assert len(coded) == 2 * count - 3  # another table, so others codes


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x80\x04cos\nsystem\n")


def _of_another(path: Path) -> None:
    other = next(one for one in path.parents[1].rglob("*.safetensors") if one != path)
    shutil.copy(other, path)


def _resigned(change: Callable[[dict[str, str], dict[str, torch.Tensor]], None]) -> Any:
    """An entry by someone who knows the format: its digest fits."""

    def forge(path: Path) -> None:
        facts, tensors = load_state(path)
        facts.pop("sha256")
        change(facts, tensors)
        path.unlink()
        Cache(path.parents[1]).put(path.stem, facts, tensors)

    return forge


def _zeroed(facts: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    tensors["codes"].zero_()


def _without_codes(facts: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    del tensors["codes"]


def _longer(facts: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    tensors["codes"] = torch.cat([tensors["codes"], tensors["codes"]])


def _not_finite(facts: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    for role, data in tensors.items():
        if data.is_floating_point():
            tensors[role] = torch.full_like(data, torch.nan)
    facts["error"] = "nan"


def _no_number(facts: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    facts["error"] = "__import__('os')"


def _no_error(facts: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    del facts["error"]


HOSTILE = {
    "cut": _cut,
    "flipped": _flipped,
    "garbage": _garbage,
    "another": _of_another,
    **{
        one.__name__.strip("_"): _resigned(one)
        for one in (_zeroed, _without_codes, _longer, _not_finite, _no_number, _no_error)
    },
}


@pytest.mark.parametrize("how", HOSTILE)
def test_what_is_not_whole_is_coded_again(
    how: str,
    tiny_llama: Path,
    tiny_statistics: Path,
    tmp_path: Path,
    coded: list[tuple[int, int]],
    plain: bytes,
    filled: Path,
) -> None:
    shutil.copytree(filled, tmp_path / "cache")
    given: dict[str, Any] = {"statistics": tiny_statistics, "cache": tmp_path / "cache"}
    path = sorted((tmp_path / "cache" / CODED).rglob("*.safetensors"))[0]
    HOSTILE[how](path)
    assert compiled(RECIPE, tiny_llama, tmp_path / "out.reallm", **given) == plain
    assert len(coded) == 1


def test_damages_are_not_trusted_either(
    tiny_llama: Path, tiny_statistics: Path, tmp_path: Path
) -> None:
    plan = reallm.plan(RECIPE, model=tiny_llama)
    jobs = {matrix.name: [matrix.plan] for matrix in plan.matrices[:2]}

    def run() -> Any:
        inventory = open_source(str(tiny_llama))
        return measure(jobs, inventory, statistics=tiny_statistics, cache=tmp_path)

    first = run()
    one, two = sorted((tmp_path / "damage").rglob("*.safetensors"))
    facts, _ = load_state(one)
    save_state(one, {}, {**facts, "kl": (0.0).hex()})
    Cache(tmp_path / "damage").put(two.stem, {"error": "-inf", "kl": "nan"}, {})
    assert run() == first


@pytest.mark.parametrize("shrink", [None, "nan", "inf", ""])
def test_an_error_alone_is_measured_again(
    shrink: str | None, tiny_llama: Path, tmp_path: Path
) -> None:
    """Without gradients a damage takes how much smaller the coded matrix is, too."""
    plan = reallm.plan(SHARING, model=tiny_llama)
    jobs = {matrix.name: [matrix.plan] for matrix in plan.matrices[:2]}
    first = measure(jobs, open_source(str(tiny_llama)), cache=tmp_path)
    one, _ = sorted((tmp_path / "damage").rglob("*.safetensors"))
    facts = {"error": (0.5).hex(), "kl": "", **({} if shrink is None else {"shrink": shrink})}
    Cache(tmp_path / "damage").put(one.stem, facts, {})
    assert measure(jobs, open_source(str(tiny_llama)), cache=tmp_path) == first


def test_tables_are_not_trusted_either(tiny_llama: Path, tmp_path: Path) -> None:
    plan = reallm.plan(SHARING, model=tiny_llama)
    jobs = {matrix.name: [matrix.plan] for matrix in plan.matrices[:2]}
    first = measure(jobs, open_source(str(tiny_llama)), cache=tmp_path)
    (table,) = (tmp_path / "shared").rglob("*.safetensors")
    for path in (tmp_path / "damage").rglob("*.safetensors"):
        path.unlink()
    Cache(tmp_path / "shared").put(table.stem, {}, {"codebook": torch.zeros(3)})
    assert measure(jobs, open_source(str(tiny_llama)), cache=tmp_path) == first


def test_the_oldest_go_beyond_a_bound(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", most_bytes=10_000)
    keys = [f"{number:064x}" for number in range(12)]
    for number, key in enumerate(keys):
        cache.put(key, {"number": str(number)}, {"x": torch.zeros(1000, dtype=torch.uint8)})
    kept = [key for key in keys if cache.get(key) is not None]
    assert 4 <= len(kept) < len(keys)
    assert kept == keys[-len(kept) :]
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert sum(sizes) <= 10_000
    facts, tensors = cache.get(keys[-1]) or ({}, {})
    assert facts == {"number": "11"}
    assert torch.equal(tensors["x"], torch.zeros(1000, dtype=torch.uint8))


def test_a_folder_that_cannot_be_made(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(reallm.CompileError, match="the cache cannot be made"):
        compiled(SHARING, tiny_llama, tmp_path / "out.reallm", cache=tmp_path / "file" / "cache")


def test_compile_takes_over_what_allocate_coded(
    tiny_llama: Path, tiny_statistics: Path, tmp_path: Path, coded: list[tuple[int, int]]
) -> None:
    pytest.importorskip("scipy")
    candidates = [{"quantizer": {"bits": bits}} for bits in (2, 3, 4)]
    given: dict[str, Any] = {"statistics": tiny_statistics, "cache": tmp_path / "cache"}
    report = reallm.allocate(
        {**RECIPE, "allocate": {"bits": "17/5", "candidates": candidates}},
        model=tiny_llama,
        output=tmp_path / "lock.yaml",
        device="cpu",
        workers=1,
        **given,
    )
    matrices = report.locks[0].matrices
    assert len({candidate for candidate, _ in matrices.values()}) > 1
    assert len(coded) == 3 * len(matrices)
    lock: Any = tmp_path / "lock.yaml"
    first = compiled(lock, tiny_llama, tmp_path / "out.reallm", **given)
    assert len(coded) == 3 * len(matrices)
    assert len(first) == report.locks[0].budget.totals.file_bytes
    plain = compiled(lock, tiny_llama, tmp_path / "two.reallm", statistics=tiny_statistics)
    assert plain == first
