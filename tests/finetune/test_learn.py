"""Scales, tables, norms and biases are learned, and nothing that is coded changes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import AdapterError, FinetuneError, FormatError
from reallm_compiler.finetune import BlockDone, FinetuneOptions, StepDone, estimate, finetune
from reallm_compiler.finetune.peft_layout import export_peft
from reallm_compiler.finetune.store import write_adapter
from reallm_compiler.reader.adapter import open_adapter
from reallm_compiler.reader.huggingface import archive_files
from reallm_compiler.reader.verify import verify
from reallm_compiler.runs.stop import Interrupted
from reallm_compiler.runtime import open_tunable
from reallm_compiler.runtime.learned import LearnedSection
from reallm_formats import Archive, names
from reallm_formats.dtypes import CODES
from tests.conftest import logits

ALL = ["scales", "tables", "norms", "biases"]
SHARED = {
    "reallm": 1,
    "defaults": {
        "scales": {"kind": "rms", "per": "row"},
        "quantizer": {"kind": "vq", "bits": 2, "dim": 2},
        "share": "model",
    },
}


@pytest.fixture(scope="module")
def shared(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared") / "base.reallm"
    reallm.compile(SHARED, model=tiny_llama, output=path, device="cpu", workers=1)
    return path


@pytest.fixture
def tune(
    base: Path, tiny_llama: Path, prose: Path, options: dict, tmp_path: Path
) -> Callable[..., Any]:
    def call(name: str, learn: list[str], archive: Path = base, **more: Any) -> Any:
        settings = {**options, "learn": learn, **more.pop("changes", {})}
        return finetune(
            archive,
            model=tiny_llama,
            text=[prose],
            output=tmp_path / name,
            options=settings,
            **more,
        )

    return call


def codes_of(path: Path) -> dict[str, bytes]:
    with Archive.open(path) as archive:
        return {
            name: bytes(archive.read(name))
            for name, section in archive.sections.items()
            if section.dtype in CODES or name.startswith("file:")
        }


@pytest.mark.parametrize("learn", [[word] for word in ("scales", "tables", "norms")] + [ALL])
def test_each_lowers_the_loss_and_is_all_that_is_stored(
    learn: list[str], tune: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    report = tune("out.adapter", learn)
    assert report.after < report.before
    assert all(row.after <= row.before for row in report.blocks)
    assert any(row.after < row.before for row in report.blocks)
    assert verify(tmp_path / "out.adapter") == []
    with open_adapter(tmp_path / "out.adapter") as adapter:
        assert adapter.names == ()
        roles = {name.rpartition("/")[2] for name in adapter.replaced}
    wanted = {
        "scales": {"scales_super", "scales_offset"},
        "tables": {"codebook", "codebook_scale"},
        "norms": {"tensor:model.norm.weight"},
        "biases": set(),
    }
    for word in ("scales", "tables", "norms"):
        assert (wanted[word] <= roles) == (word in learn)


def test_what_was_tuned_is_what_is_read(
    tune: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    """Rounding is part of the tuning, so that another run begins where the last one ended."""
    path = tmp_path / "out.adapter"
    report = tune("out.adapter", ALL)
    again = tune("again.adapter", ALL, adapter=path, changes={"stages": ["e2e"]})
    assert again.before == pytest.approx(report.after, rel=1e-6)
    tuned, _ = reallm.load(base, adapter=path, dtype=torch.float32)
    tunable = open_tunable(base, adapter=path, dtype=torch.float32)
    assert torch.allclose(logits(tuned), logits(tunable.model), atol=1e-4)
    plain, _ = reallm.load(base, dtype=torch.float32)
    assert not torch.allclose(logits(tuned), logits(plain), atol=1e-2)
    followed = open_tunable(base, adapter=path, dtype=torch.float32, learn=("scales", "norms"))
    assert torch.allclose(logits(followed.model), logits(tuned), atol=1e-4)


def test_a_new_archive_has_the_same_codes(
    tune: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    everything = ["factors", "gains", *ALL]
    tune("one.adapter", everything, changes={"stages": ["e2e"]})
    tune("one.reallm", everything, changes={"stages": ["e2e"]}, into=True)
    assert verify(tmp_path / "one.reallm") == []
    assert codes_of(tmp_path / "one.reallm") == codes_of(base)
    with reallm.open(tmp_path / "one.reallm") as new, reallm.open(base) as old:
        before = dict(old.errors)
        old.use(open_adapter(tmp_path / "one.adapter"))
        for name in old.names:
            assert torch.equal(new.matrix(name), old.matrix(name))
        norm = "model.norm.weight"
        assert torch.equal(new.tensor(norm), old.tensor(norm))
        assert all(new.errors[name] != before[name] for name in new.names)


def test_a_new_archive_without_factors(
    tune: Callable[..., Any], shared: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    tune("new.reallm", ["tables"], shared, changes={"stages": ["e2e"]}, into=True)
    source = load_file(tiny_llama / "model.safetensors")
    with reallm.open(tmp_path / "new.reallm") as new:
        for name in new.names:
            weight = source[name + ".weight"].double()
            error = float((weight - new.matrix(name, dtype=torch.float64)).norm() / weight.norm())
            assert new.errors[name] == pytest.approx(error, rel=1e-5)


def test_a_shared_table_is_not_learned_block_by_block(
    tune: Callable[..., Any], shared: Path, tmp_path: Path
) -> None:
    """Blocks that are finished would change with it."""
    section = names.share_section("model", "codebook")
    with Archive.open(shared) as archive:
        before = bytes(archive.read(section))
    for stage, same in (("block", True), ("e2e", False)):
        report = tune(f"{stage}.adapter", ALL, shared, changes={"stages": [stage]})
        assert report.blocks == () or report.blocks[0].after < report.blocks[0].before
        with Archive.open(tmp_path / f"{stage}.adapter") as archive:
            assert (bytes(archive.read(section)) == before) == same


def test_rows_and_columns_get_gains_that_the_archive_has_not(
    tune: Callable[..., Any], shared: Path, tmp_path: Path
) -> None:
    for learn in (["rows"], ["columns"]):
        report = tune("one.adapter", learn, shared, changes={"stages": ["e2e"]}, force=True)
        assert report.after < report.before
    report = tune("rows.adapter", ["rows", "columns"], shared, adapter=tmp_path / "one.adapter")
    assert report.after < report.before
    with open_adapter(tmp_path / "rows.adapter") as adapter:
        assert adapter.replaced == {}
        assert len(adapter.rows) == 14
        assert all(row.gain and row.column_gain for row in adapter.rows.values())
        assert all(not row.rank for row in adapter.rows.values())
        for name in adapter.names:
            parts = adapter.parts(name)
            assert all(bool((parts[part] != 1).any()) for part in ("gain", "column_gain"))
    tuned, _ = reallm.load(shared, adapter=tmp_path / "rows.adapter", dtype=torch.float32)
    tunable = open_tunable(shared, adapter=tmp_path / "rows.adapter", dtype=torch.float32)
    assert torch.allclose(logits(tuned), logits(tunable.model), atol=1e-4)
    with pytest.raises(AdapterError, match="gains of columns, which peft does not know"):
        export_peft(shared, tmp_path / "peft", adapter=tmp_path / "rows.adapter")
    with pytest.raises(AdapterError, match="no such gains"):
        tune("rows.reallm", ["rows"], shared, into=True, changes={"stages": ["e2e"]})


def test_a_run_that_is_stopped_twice_ends_with_the_same_bytes(
    tune: Callable[..., Any], shared: Path, tmp_path: Path
) -> None:
    """Within a block, and between two steps of the second stage."""
    learn = ["rows", "columns", *ALL]
    tune("whole.adapter", learn, shared)

    def stop(kind: type, event: Any) -> None:
        if isinstance(event, kind):
            signal.raise_signal(signal.SIGTERM)

    for kind in (BlockDone, StepDone):
        with pytest.raises(Interrupted):
            tune("cut.adapter", learn, shared, on_event=partial(stop, kind))
    tune("cut.adapter", learn, shared, resume="required")
    whole, cut = ((tmp_path / f"{name}.adapter").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_what_was_learned_before_is_carried_on(
    tune: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    """Norms of a first adapter stay in a second that learns factors alone, and the other way."""
    e2e = {"stages": ["e2e"]}
    tune("norms.adapter", ["norms"], changes=e2e)
    tune("two.adapter", ["factors"], adapter=tmp_path / "norms.adapter", changes=e2e)
    tune("three.adapter", ["scales"], adapter=tmp_path / "two.adapter", changes=e2e)
    paths = [tmp_path / f"{name}.adapter" for name in ("norms", "two", "three")]
    one, two, three = (open_adapter(path) for path in paths)
    with one, two, three:
        assert set(one.replaced) == set(two.replaced) < set(three.replaced)
        for name in one.replaced:
            data = [bytes(each._archive.read(name)) for each in (one, two, three)]
            assert data[0] == data[1] == data[2]
        assert two.names == three.names != ()
        for name in two.names:
            first, second = two.parts(name), three.parts(name)
            assert all(torch.equal(first[part], second[part]) for part in ("l1", "l2"))


def test_an_open_model_cannot_switch_scales(
    tune: Callable[..., Any], base: Path, adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.adapter"
    tune("out.adapter", ["scales"], changes={"stages": ["e2e"]})
    with pytest.raises(AdapterError, match="cannot switch"):
        open_tunable(base).use(path)
    opened = open_tunable(base, adapter=path)
    opened.use(path)
    for other in (None, adapter):
        with pytest.raises(AdapterError, match="cannot switch"):
            opened.use(other)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("matrix:model.layers.0.mlp.up_proj/codes", torch.float32),
        ("tensor:model.embed_tokens.weight", torch.bfloat16),
        ("tensor:model.norm.weight", torch.float16),
        ("share:none/codebook", torch.int8),
    ],
)
def test_an_adapter_replaces_what_is_learnable_and_nothing_else(
    name: str, dtype: torch.dtype, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reallm_compiler.finetune import store
    from reallm_compiler.storage.base import SectionSpec

    section = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int8: "i8"}
    spec = SectionSpec(role="x", dtype=section[dtype], shape=(2,), term="")
    monkeypatch.setattr(store, "_specs", lambda archive, replaced: {name: spec})
    path = tmp_path / "bad.adapter"
    with reallm.open(base) as archive:
        replaced = {name: torch.ones(2, dtype=dtype)}
        facts = {"factors": None, "settings": {}, "provenance": {}}
        write_adapter(path, archive, {}, replaced=replaced, **facts)
    assert verify(path) == []
    with pytest.raises(AdapterError, match="may replace") as caught:
        reallm.open(base, adapter=path)
    assert name in caught.value.message


def test_numbers_without_a_meaning_are_refused(shared: Path, tmp_path: Path) -> None:
    """Finite or not is seen in the adapter alone, the rest by whoever uses it with its base."""
    facts = {"factors": None, "settings": {}, "provenance": {}}
    for value, known in ((float("nan"), True), (-1.0, False)):
        path = tmp_path / f"{value}.adapter"
        with reallm.open(shared) as archive:
            name = names.matrix_section(archive.names[0], "scales")
            rows = archive.plan.matrices[0].shape[0]
            replaced = {name: torch.full((rows,), value)}
            write_adapter(path, archive, {}, replaced=replaced, **facts)
        assert [damage.rule for damage in verify(path)] == (["P5"] if known else [])
        with pytest.raises(FormatError) as caught:
            reallm.load(shared, adapter=path)
        assert caught.value.rule == "P5"
        assert name in str(caught.value.location)
        assert str(path) in str(caught.value.location)


def test_bfloat16_and_activations_that_are_computed_again(
    tune: Callable[..., Any], base: Path
) -> None:
    learn = ["factors", *ALL]
    e2e = {"lr": 1e-2, "batch": 4, "accumulation": 1, "steps": 4, "loss": "distill"}
    changes = {"stages": ["e2e"], "e2e": e2e}
    plain = tune("plain.adapter", learn, changes=changes)
    again = tune("again.adapter", learn, changes={**changes, "checkpointing": True})
    assert again.after == pytest.approx(plain.after, rel=1e-5)
    half = tune("half.adapter", learn, changes={**changes, "precision": "bfloat16"})
    assert half.after < half.before
    assert half.after == pytest.approx(plain.after, rel=0.2)


def test_damage_of_what_is_replaced_is_found(
    tune: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.adapter"
    tune("out.adapter", ["norms"], changes={"stages": ["e2e"]})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (damage,) = verify(path)
    assert "norm" in damage.location
    with pytest.raises(FormatError, match="damaged"):
        reallm.load(base, adapter=path)


def test_nothing_to_learn_is_noted(tune: Callable[..., Any], shared: Path) -> None:
    with pytest.raises(FinetuneError, match="no factors and no gains") as caught:
        tune("out.adapter", ["factors", "gains"], shared)
    assert "learn=[scales,tables,norms]" in str(caught.value.hint)
    with pytest.raises(FinetuneError, match="no biases"):
        tune("out.adapter", ["biases"], shared)
    for wrong in ([], ["norms", "norms"], ["magic"]):
        with pytest.raises(FinetuneError, match="learn"):
            tune("out.adapter", wrong, shared)


def test_the_estimate_counts_what_is_learned(base: Path, shared: Path) -> None:
    for path in (base, shared):
        for learn in (
            ["scales", "tables"],
            ["rows", "columns", "norms"],
            ["factors", "gains", *ALL],
        ):
            tunable = open_tunable(path, learn=learn)
            settings = FinetuneOptions.model_validate({"stages": ["e2e"], "learn": learn})
            with reallm.open(path) as archive:
                found = estimate(archive.plan, archive_files(archive).config, settings)
            assert found.tuned == sum(value.numel() for _, value in tunable.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
def test_a_section_is_learned_as_it_is_stored(dtype: torch.dtype) -> None:
    from reallm_compiler.codecs.sections import DTYPE_NAMES
    from reallm_compiler.planning.learnable import LearnableSection
    from reallm_compiler.storage.base import SectionSpec
    from reallm_compiler.storage.values import Finite

    values = torch.tensor([3.0, 0.0, 100.0]).to(dtype)
    rule = Finite(negative=False, zero=False) if dtype == torch.float32 else Finite()
    spec = SectionSpec(role="x", dtype=DTYPE_NAMES[dtype], shape=(3,), term="scales", values=rule)
    known = LearnableSection(name="matrix:m/x", spec=spec, group="scales", owner="m")
    one = LearnedSection(known, values, None)
    expected = values.float()
    if dtype == torch.float32:
        expected = expected.clamp(min=torch.finfo(dtype).smallest_normal)
    assert torch.equal(one.values().detach(), expected)
    assert torch.equal(one.stored(), expected.to(dtype))
    with torch.no_grad():
        one.theta.add_(0.01)
    moved = values.float() + 0.01 * one.unit
    assert one.unit == pytest.approx(float(values.float().square().mean().sqrt()))
    assert torch.equal(one.values().detach(), one.stored().float())
    spacing = {torch.int8: 0.5, torch.bfloat16: 0.3, torch.float16: 0.05, torch.float32: 1e-5}
    assert float((one.values().detach() - moved).abs().max()) <= spacing[dtype]
    one.theta.requires_grad_(True)
    one.values().sum().backward()
    assert torch.allclose(one.theta.grad, torch.full((3,), one.unit))
    with torch.no_grad():
        one.theta.mul_(-1e6)
    assert torch.isfinite(one.values()).all()
    data = memoryview(one.stored().view(torch.uint8).numpy().tobytes())
    assert rule.problem(data, spec.dtype, (3,)) is None
