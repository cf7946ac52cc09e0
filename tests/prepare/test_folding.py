"""Factors folded into what makes the inputs: the same logits, no bytes, refusals by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import reallm_compiler as reallm
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CalibrateError, EvaluationError, RecipeError, SourceError
from reallm_compiler.estimates.work import compile_work
from reallm_compiler.execute.events import TaskDone
from reallm_compiler.reader.reconstruct import reconstruct
from reallm_compiler.reader.verify import verify
from reallm_compiler.storage.work import TRIALS
from tests.codecs.test_channel_scale import cost, plain_factors, plain_rounding
from tests.conftest import copy_tokenizer
from tests.prepare.blocks import tuned_blocks
from tests.prepare.test_prepared_models import FAMILIES, FOLD, ROTATE, distance, logits, save
from tests.prepare.test_prepared_runs import Killed

LOSSLESS: dict[str, Any] = {"quantizer": {"kind": "none", "dtype": "float32"}}
CODED: dict[str, Any] = {
    "scales": {"kind": "affine", "code_bits": 3, "block": 8},
    "quantizer": {"kind": "uniform", "bits": 3},
}


def recipe(later: dict[str, Any] = CODED, **scale: Any) -> dict[str, Any]:
    """Factors of all matrices in blocks, folded."""
    stage = {"kind": "channel_scale", "fold": True, **scale}
    return {
        "reallm": 1,
        "statistics": "required",
        "defaults": {"transform": [stage], **later},
        "rules": [{"match": "lm_head", "keep": "source", "optional": True}],
    }


@pytest.fixture(scope="module")
def measured(
    tiny_llama: Path, words: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """A model of a family, and its statistics."""
    known: dict[str, tuple[Path, Path]] = {}

    def of(family: str) -> tuple[Path, Path]:
        if family not in known:
            folder = tmp_path_factory.mktemp("family")
            model = save(folder / "model", family, vocab_size=320, hidden_size=32)
            copy_tokenizer(tiny_llama, model)
            known[family] = model, statistics_of(model, words)
        return known[family]

    return of


def statistics_of(model: Path, words: Path) -> Path:
    path = model.parent / "model.stats"
    reallm.calibrate(
        model, output=path, text=[words], samples=8, window=12, device="cpu", progress=False
    )
    return path


def compiled(given: dict[str, Any], model: Path, stats: Path, output: Path, **more: Any) -> Any:
    options = {"workers": 1, "device": "cpu", "progress": False, **more}
    return reallm.compile(given, model=model, statistics=stats, output=output, **options)


@pytest.mark.parametrize(
    ("family", "prepare"),
    [*((family, []) for family in FAMILIES), ("gemma, tied", FOLD), ("phi3", ROTATE)],
    ids=lambda one: one if isinstance(one, str) else "".join(stage["kind"] for stage in one),
)
def test_an_unquantized_model_computes_what_the_original_does(
    family: str, prepare: list[dict[str, Any]], measured: Any, tmp_path: Path
) -> None:
    model, stats = measured(family)
    given = {**recipe(LOSSLESS, alpha="1/2"), "prepare": prepare}
    plan = reallm.plan(given, model=model)
    archive = tmp_path / "x.reallm"
    compiled(given, model, stats, archive)
    assert archive.stat().st_size == plan.budget().totals.file_bytes
    plain = {"reallm": 1, "defaults": LOSSLESS, "prepare": prepare, "rules": given["rules"]}
    totals = reallm.plan(plain, model=model).budget().totals
    assert plan.budget().totals.coded_bytes == totals.coded_bytes
    verify(archive)
    with reallm.open(archive) as opened:
        assert not any(matrix.plan.transform for matrix in opened.plan.matrices)
        attended = opened.tensor("model.layers.0.input_layernorm.weight")
        inside = next(n for n in opened.names if "layers.1.mlp" in n and "down" in n)
        down = opened.matrix(inside)
    original = load_file(model / "model.safetensors")
    assert distance(attended, original["model.layers.0.input_layernorm.weight"]) > 0.1
    assert distance(down, original[f"{inside}.weight"]) > 0.1
    folder = reconstruct(archive, tmp_path / "plain", progress=False)
    assert distance(logits(folder), logits(model)) < 1e-5


def inputs_of(stats: Path, name: str) -> Any:
    with StatisticsFile(stats) as file:
        return file.read(name)


def ratios(one: Tensor, other: Tensor) -> Tensor:
    """By what the columns of `other` [p, q] were multiplied to give those of `one`."""
    return (one.double() * other).sum(0) / other.double().square().sum(0)


def test_matrices_of_one_input_share_the_factors_of_a_plain_search(
    tiny_llama: Path, words: Path, tmp_path: Path
) -> None:
    """The exponent is that with the least sum of costs, and factors are the formula's; those of
    heads that are given the same values are alike.
    """
    model = save(tmp_path / "model", "llama", vocab_size=320, hidden_size=32)
    copy_tokenizer(tiny_llama, model)
    original = load_file(model / "model.safetensors")
    layer = "model.layers.0"
    original[f"{layer}.self_attn.q_proj.weight"] *= 200  # heads attend to different tokens
    save_file(original, model / "model.safetensors", metadata={"format": "pt"})
    stats = statistics_of(model, words)
    groups = {
        f"{layer}.input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        f"{layer}.self_attn.v_proj": ["self_attn.o_proj"],
        f"{layer}.post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
        f"{layer}.mlp.up_proj": ["mlp.down_proj"],
    }
    chosen = set()
    for maker, readers in groups.items():
        weights = [original[f"{layer}.{reader}.weight"] for reader in readers]
        found = inputs_of(stats, f"{layer}.{readers[0]}")
        size = found.mean_abs.double()
        if maker.endswith("v_proj"):  # 4 heads of 8 read 2 heads of values
            size = size.view(2, 2, 8).mean(1, keepdim=True).expand(2, 2, 8).reshape(-1)
        costs = []
        for step in range(20):
            inverse = (1 / plain_factors(weights[0], size, step / 20, "inputs")).half().float()
            errors = [plain_rounding(one / inverse) * inverse - one for one in weights]
            costs.append(sum(cost(error, found) for error in errors))
        best = costs.index(min(costs))
        chosen.add(best)
        expected = plain_factors(weights[0], size, best / 20, "inputs")
        exact = recipe(LOSSLESS, alpha=f"{best}/20")  # the same factors, seen without codes
        for number, given in enumerate((recipe(), exact)):
            path = tmp_path / f"{best}-{number}.reallm"
            if not path.exists():
                compiled(given, model, stats, path)
        with reallm.open(tmp_path / f"{best}-1.reallm") as opened:
            norm = None if "proj" in maker else opened.tensor(f"{maker}.weight")
            moved = [opened.matrix(f"{layer}.{reader}") for reader in readers]
        with reallm.open(tmp_path / f"{best}-0.reallm") as opened:
            searched = None if "proj" in maker else opened.tensor(f"{maker}.weight")
        for reader, one, weight in zip(readers, moved, weights, strict=True):
            if f"{layer}.{reader}" in groups:
                continue  # its rows are divided as well
            torch.testing.assert_close(ratios(one, weight), expected, rtol=2e-3, atol=0)
        if norm is not None:
            torch.testing.assert_close(norm, searched, rtol=0, atol=0)
    assert len(chosen) > 1
    assert chosen != {0}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_compile_goes_on_to_the_same_bytes(
    workers: int, tiny_llama: Path, words: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    stats = statistics_of(model, words)
    compiled(recipe(), model, stats, tmp_path / "whole.reallm")
    again = tmp_path / "again.reallm"

    def stop(event: Any) -> None:
        if isinstance(event, TaskDone) and event.tasks_done == 7:
            raise Killed

    with pytest.raises(Killed):
        compiled(recipe(), model, stats, again, on_event=stop)
    done = compiled(recipe(), model, stats, again, workers=workers)
    assert done.tasks_resumed == 7
    assert again.read_bytes() == (tmp_path / "whole.reallm").read_bytes()
    name = "model.layers.1.self_attn.v_proj"  # its columns and its rows have factors
    tried = reallm.compile(
        recipe(), model=model, statistics=stats, only=name, device="cpu", progress=False
    )
    assert tried.errors[name] == done.errors[name]


@pytest.mark.parametrize("family", ["llama, tied, biases", "gemma, tied"])
def test_blocks_learn_beside_folded_factors(
    family: str, measured: Any, words: Path, tmp_path: Path, outcomes: list[Any]
) -> None:
    """A fine grid leaves nothing to learn: blocks follow those of the folded original."""
    model, stats = measured(family)
    grid = {"kind": "affine", "code_bits": 8, "block": 8}
    fine = {"scales": grid, "quantizer": {"kind": "uniform", "bits": 8}}
    fit = {"kind": "block", "epochs": 2, "samples": 8, "window": 16, "lr": 1e-2}

    def learned(output: str, learn: list[str], later: Any = CODED, stop: str = "") -> Path:
        def heard(event: Any) -> None:
            if isinstance(event, TaskDone) and event.name == stop:
                raise Killed

        given = {**recipe(later, alpha="1/2"), "fit": {**fit, "learn": learn}}
        compiled(given, model, stats, tmp_path / output, text=words, on_event=heard)
        return tmp_path / output

    learned("fine", ["clip"], fine)
    whole = learned("whole", ["clip"])
    assert len(outcomes) == 4
    assert all(one.before < other.before / 100 for one in outcomes[:2] for other in outcomes[2:])
    assert all(one.after < one.before for one in outcomes[2:])
    with pytest.raises(Killed):
        learned("again", ["clip"], stop="block 0")
    assert learned("again", ["clip"]).read_bytes() == whole.read_bytes()
    compiled(recipe(alpha="1/2"), model, stats, tmp_path / "plain")
    digests = []
    for path in (tmp_path / "plain", learned("held", [])):
        with reallm.open(path) as opened:
            digests.append({one.name: one.sha256 for one in opened.manifest.sections})
    assert digests[0] == digests[1]


def test_a_cache_tells_other_factors_apart(measured: Any, words: Path, tmp_path: Path) -> None:
    """The plans and weights of both runs are the same, and need no statistics by themselves."""
    model, stats = measured("qwen2, tied")
    other = tmp_path / "other.stats"
    reallm.calibrate(
        model, output=other, text=[words], samples=2, window=4, device="cpu", progress=False
    )
    given = recipe(alpha="1/2")
    cache, entries = tmp_path / "cache", []
    made = {}
    for label, file, kept in (("a", stats, True), ("b", other, True), ("c", other, False)):
        made[label] = tmp_path / label
        compiled(given, model, file, made[label], **({"cache": cache} if kept else {}))
        entries.append(sum(path.is_file() for path in cache.rglob("*")))
    a, b, c = (path.read_bytes() for path in made.values())
    assert a != b == c
    assert entries[1] >= entries[0] + 14  # none takes the place of another's


def test_tuning_and_eval_know_the_original(measured: Any, words: Path, tmp_path: Path) -> None:
    model, stats = measured("llama, tied, biases")
    given = recipe({**LOSSLESS, "residual": {"kind": "low_rank", "rank": 2}}, alpha="1/2")
    archive = tmp_path / "x.reallm"
    compiled(given, model, stats, archive)
    blocks = tuned_blocks(archive, model, words, tmp_path / "x.adapter")
    assert len(blocks) == 2
    assert all(block.before < 1e-6 for block in blocks)
    found = reallm.eval(archive, text=words, window=16, reference=model, progress=False)
    assert found.kl is not None
    assert found.kl < 1e-6
    pytest.importorskip("matplotlib")
    from reallm_compiler.evaluate.heatmap import heatmap

    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(EvaluationError, match="factors that the archive does not hold"):
        heatmap(archive, name, tmp_path / "x.png", model=model)


def test_other_formats_need_nothing_more(tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    stats = statistics_of(model, words)
    later = {
        "scales": {"kind": "affine", "code_bits": 4, "block": 16, "dtype": "bfloat16"},
        "quantizer": {"kind": "uniform", "bits": 4},
    }
    scaled, plain = tmp_path / "scaled.reallm", tmp_path / "plain.reallm"
    compiled(recipe(later, alpha="1/2"), model, stats, scaled)
    rules = recipe()["rules"]
    reallm.compile(
        {"reallm": 1, "defaults": later, "rules": rules}, model=model, output=plain, progress=False
    )
    names = []
    for archive in (scaled, plain):
        folder = archive.with_suffix("")
        reallm.export(archive, folder, to="compressed-tensors", progress=False)
        names.append(sorted(load_file(folder / "model.safetensors")))
    assert names[0] == names[1]


def test_the_search_is_counted_where_time_is_estimated(tiny_llama: Path) -> None:
    """20 trials of each matrix, twice where no norm keeps the factors."""
    plan = reallm.plan(recipe(), model=tiny_llama)
    rows = [(one.name.rpartition(".")[2], one.numel) for one in plan.matrices]
    inside = sum(numel for name, numel in rows if name != "lm_head")
    twice = sum(numel for name, numel in rows if name in ("o_proj", "down_proj"))
    counted = sum(work.get(TRIALS, 0) for work, _ in compile_work(plan).matrices)
    assert counted == 20 * (inside + twice)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"match": "*.k_proj", "set": {"transform": []}},
            "layers.0.self_attn.q_proj cannot be folded: `model.layers.0.self_attn.k_proj.weight` "
            "has the same input, and is not scaled alike",
        ),
        ({"match": "*.up_proj", "keep": "source"}, "layers.0.mlp.gate_proj cannot be folded"),
        (
            {"match": "*embed_tokens", "set": {"dora": False}},
            "model.embed_tokens cannot be folded: its input is made by no norm",
        ),
    ],
)
def test_what_the_graph_does_not_allow_is_refused_by_name(
    rule: dict[str, Any], message: str, tiny_llama: Path
) -> None:
    given = recipe()
    given["rules"] = [*given["rules"], rule]
    with pytest.raises(RecipeError) as caught:
        reallm.plan(given, model=tiny_llama)
    assert message in str(caught.value)
    assert "leave `fold` out" in str(caught.value)


def test_what_it_needs_is_said(tiny_llama: Path, measured: Any, tmp_path: Path) -> None:
    bare = {key: value for key, value in recipe().items() if key != "statistics"}
    with pytest.raises(RecipeError, match="needs measured statistics"):
        reallm.plan(bare, model=tiny_llama)
    fit = {"kind": "block", "learn": ["clip", "norms"]}
    with pytest.raises(RecipeError, match="`norms` do not learn where the factors"):
        reallm.plan({**recipe(), "fit": fit}, model=tiny_llama)
    with pytest.raises(SourceError, match="cannot divide inputs where they are made") as caught:
        reallm.plan(recipe(), model={"model_type": "olmo2", **OLMO})
    assert "norms come after" in str(caught.value.note)
    _, stats = measured("llama")
    with pytest.raises(CalibrateError, match="layers"):
        compiled(recipe(), tiny_llama, stats, tmp_path / "x.reallm")


OLMO: dict[str, Any] = {
    "architectures": ["Olmo2ForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
